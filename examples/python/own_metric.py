"""A federation that is measured by a function of one's own: how long the answers are that the model writes."""

import florist
from florist.config.reading import DEMONSTRATION
from florist.models.loading import load_tokenizer

MODEL = DEMONSTRATION.parent / "demonstration" / "model"
CLIENTS = {
    "north": [("upper: oak birch\n", "OAK BIRCH"), ("upper: elm\n", "ELM")],
    "south": [("title: red fox\n", "Red Fox"), ("title: owl\n", "Owl")],
}
TOKENIZER = load_tokenizer(str(MODEL))


def answer_length(model):
    """How many tokens the model writes after a prompt, at most 20."""
    prompt = TOKENIZER("upper: oak\n", return_tensors="pt").to(model.device)
    written = model.generate(**prompt, max_new_tokens=20, do_sample=False, pad_token_id=TOKENIZER.pad_token_id)
    return {"answer_tokens": written.shape[1] - prompt["input_ids"].shape[1]}


if __name__ == "__main__":
    training = {"steps": 2, "threads": 1}
    run = florist.simulate(
        model=MODEL, tokenizer=TOKENIZER, clients=CLIENTS, ranks=4, rounds=1, metric=answer_length, training=training
    )
    print(dict(run.initial), dict(run.metrics))
