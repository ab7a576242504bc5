"""The examples at the end of the help pages. They are short: a line that is broken cannot be copied."""

_EXAMPLES = {
    "": ("florist simulate", "florist aggregate site1 site2 site3 -o combined"),
    "aggregate": (
        "florist aggregate site1 site2 site3 --tau 0.95 -o combined",
        "florist aggregate site1 site2 --weights 300,100 --budget 20MB -o small",
    ),
    "compare": (
        "florist compare config.toml --methods florist,fedit --seeds 5 -o out",
        "florist compare --resume out",
    ),
    "evaluate": (
        "florist evaluate run --by-client --base",
        "florist evaluate adapter --config config.toml --data new.jsonl",
    ),
    "export": (
        "florist export run --round 3 -o adapter-3",
        "florist export run --best -o best --push-to-hub me/adapter",
    ),
    "extract": (
        "florist extract base tuned --tau 0.9 -o adapter",
        "florist extract base tuned --rank 16 --others save -o adapter",
    ),
    "init": (
        "florist init --model path/to/model --data path/to/data",
        "florist init --preset tinyllama-dolly-equal --data d -o t.toml",
    ),
    "inspect": ("florist inspect site1 site2 --sweep", "florist inspect site1 --modules --json"),
    "plan": (
        "florist plan llama-7b --ranks 64,32,16,16,8,8,4,4 --tau-rank 9",
        "florist plan tinyllama --clients 100 --fraction 0.1 --rounds 75",
    ),
    "report": ("florist report run", "florist report comparison --figures figures"),
    "simulate": (
        "florist simulate config.toml --set federation.rounds=5 -o run",
        "florist simulate --resume run --set federation.rounds=8",
    ),
    "tune": (
        "florist tune run --margin 0.01 -o tuned",
        "florist tune site1 site2 --config config.toml --taus 0.8,0.9,0.99",
    ),
    "watch": ("florist watch run", "florist watch run --once"),
}


def examples_of(command: str) -> str:
    """The end of a help page, with a line for every example.

    Args:
        command: its name; empty for florist itself.
    """
    # An empty line is what keeps lines apart in the epilog of a help page.
    return "\n\n".join(["Examples:", *_EXAMPLES[command]])
