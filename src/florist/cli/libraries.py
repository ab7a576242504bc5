"""The libraries that train and load models, loaded once they are needed and kept from printing."""

import warnings
from importlib import import_module

from florist.errors import MissingDependencyError, how_to_install


def load_training_libraries(command: str) -> None:
    """Import transformers, PEFT and what is built on them, and silence their bars and advice.

    Args:
        command: the name of the command that needs them.

    Raises:
        MissingDependencyError: one of them is not installed.
    """
    try:
        import transformers  # noqa: PLC0415  # takes seconds

        import_module("florist.config.building")  # and with it whatever else training needs
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"florist {command} works with transformers and PEFT, and {error.name} is not installed: "
            f"{how_to_install('train')}"
        ) from error
    warnings.filterwarnings("ignore", module=r"(transformers|peft)\.")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
