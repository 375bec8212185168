"""Sphinx's configuration of the site; `python3 lab.py site FOLDER` copies it beside the pages."""

project = html_title = "minicpmv-ref"
extensions = ["myst_nb"]
html_theme = "furo"
html_static_path = ["_static"]
html_extra_path = ["_extra"]
html_css_files = ["site.css"]
# The search fetches each page that it found to show a few of its words; pages opened from a disk may not be fetched.
html_js_files = [(None, {"body": "DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== 'file:';"})]
html_show_sphinx = html_show_copyright = html_copy_source = False

# Formulas with MathJax 3, from one file beside the pages.
myst_enable_extensions = ["dollarmath"]
mathjax_path = "tex-svg.js"

# Outputs are those of the saved lessons.
nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_heading_anchors = 4
suppress_warnings = ["toc.not_included", "misc.highlighting_failure", "myst.header"]
