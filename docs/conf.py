"""How Sphinx builds the site from these pages; ``make docs`` calls it, and a warning fails it.

Sphinx, because the references come from the docstrings and tables of florist itself, and because its nitpicky mode
fails on a link, a heading or a type that is not there. MyST reads the pages as they are on a code host.

MyST-NB, because it reads the prose of notebooks by that same parser, so that their links are checked as those of pages
are; nbsphinx would convert it by pandoc, a program that pip does not install. It runs the notebooks whenever it reads
them: the repository keeps them without outputs, and what the site shows is what this florist does on the machine that
built it. A cell that fails, fails the build.
"""

import os
import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "florist"
release = metadata.version("florist")
html_title = f"florist {release}"
html_show_copyright = False
html_show_sphinx = False
html_theme = "furo"
# The pages are read in the repository too; a second copy of their text is for nobody.
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
# It would make one dash of the two before an option.
smartquotes = False
templates_path: list[str] = []
exclude_patterns = ["_build", "**/.ipynb_checkpoints"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "generated"]
# The prompt is no part of a command.
copybutton_exclude = ".linenos, .gp"

# Headings get the anchors that code hosts give them, which the pages link to.
myst_heading_anchors = 4
highlight_language = "none"

# Notebooks read what is in the repository, and the build needs no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
# Progress bars, and warnings that other libraries have for their own programmers.
nb_output_stderr = "remove"
nb_merge_streams = True

# Docstrings put one pair of backticks around whatever is code.
default_role = "literal"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True

nitpicky = True
nitpick_ignore_regex = [
    # Types of other libraries have no page here, and the build needs no network to look for one.
    ("py:.*", r"(?!florist\b).*"),
    # The sections of a configuration have a page of their own.
    ("py:class", r"florist\.config\.sections\..*"),
]
# Types that stand in signatures alone: nobody outside of florist makes one.
nitpick_ignore = [
    ("py:class", f"florist.{name}")
    for name in (
        "checkpoint.model_weights._Place",
        "checkpoint.reading.LazyTensors",
        "checkpoint.tensor_file.StoredTensor",
        "one_shot.budget.BesideFactors",
        "checkpoint.unchanged_file.UnchangedFile",
        "compression.packed.PackedAdapter",
        "compression.residual.Residual",
        "data.examples.EncodedExamples",
        "evaluation.choices.Questions",
        "federation.bounding.Bounding",
        "federation.broadcasts.Broadcasts",
        "federation.communication.Communication",
        "federation.history.RunDirectory",
        "federation.kept_rounds.KeepRounds",
        "federation.private_records.PrivacyRecord",
        "federation.private_rounds.PrivateRounds",
        "federation.rules.Federation",
        "flower.client_texts._printable",
        "one_shot.weights.Weight",
        "planning.architectures.ModelShape",
        "planning.kept.KeptRanks",
        "planning.sending.ModuleGroup",
        "planning.traffic.Link",
        "privacy.keys.PublicKeys",
        "privacy.layout.Layout",
        "privacy.noise_share.NoiseShare",
    )
]
