"""How these pages are built: `make docs`."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent / "src")]

from anomalydiffusion.core.version import __version__  # noqa: E402

project = "anomalydiffusion"
author = "the anomalydiffusion authors"
copyright = "the anomalydiffusion authors; Apache-2.0"
version = release = __version__

default_role = "code"
add_module_names = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "generated"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other libraries: their inventories would have to be fetched
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"anomalydiffusion {version}"
html_show_sphinx = False
html_copy_source = False
