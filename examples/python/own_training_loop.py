"""A federation whose clients train by a loop of one's own."""

import torch

import florist
from florist.config.reading import DEMONSTRATION

MODEL = DEMONSTRATION.parent / "demonstration" / "model"
CLIENTS = {
    "north": [("upper: oak birch\n", "OAK BIRCH"), ("upper: elm\n", "ELM"), ("upper: ash\n", "ASH")],
    "south": [("title: red fox\n", "Red Fox"), ("title: owl\n", "Owl"), ("title: old crow\n", "Old Crow")],
}


def train(model, examples, context):
    """Train the parameters that require gradients by SGD with momentum, and return the mean loss."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.SGD(trained, lr=context.settings.learning_rate, momentum=0.9), []
    for batch in context.batches(model, examples):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


if __name__ == "__main__":
    settings = {"learning_rate": 0.01, "steps": 3, "batch_size": 2, "threads": 1}
    run = florist.simulate(model=MODEL, clients=CLIENTS, ranks=[8, 4], rounds=2, train=train, training=settings)
    print(run)
