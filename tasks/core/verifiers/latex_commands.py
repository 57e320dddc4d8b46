"""LaTeX commands by what they mean for an answer: nothing, a space, a typeface, the same as another one."""

SIGNS = str.maketrans(
    {
        "\u2212": "-", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u00f7": "\\div ", "\u03c0": "\\pi ",
        "\u221e": "\\infty ", "\u00b0": "^\\circ ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ",
        "\u2205": "\\emptyset ", "\u00b1": "\\pm ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2208": "\\in ",
        "\u00b2": "^{2}", "\u00b3": "^{3}", "\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}",
        "\u00be": "\\frac{3}{4}",
    }
)  # fmt: skip
"""What models write for LaTeX, one sign for one command; nothing else beyond ASCII is read, it may only be equal."""


def commands(names: str) -> frozenset[str]:
    """The names, each with its backslash."""
    return frozenset("\\" + name for name in names.split())


TEXTS = commands(
    "text mbox hbox textbf textit textrm textsf texttt textnormal mathrm mathsf mathit mathtt operatorname"
)
"""Commands whose argument may be words."""
TYPEFACES = commands("mathbf boldsymbol bm bold underline")
"""Commands that change the look of their argument alone."""
COLORS = commands("color textcolor")
"""Commands whose argument is the colour of what follows."""
SIZES = commands("left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr")
"""Commands that change the size of the bracket after them."""
NOTHING = frozenset(["\\!", "\\displaystyle", "\\textstyle", "\\limits", "\\boxed", "\\fbox", "\\bf"])
"""Commands that mean nothing inside an answer."""
SPACES = frozenset(["$", "\\$", "\\(", "\\)", "~", "\\;", "\\:", "\\>", "\\ "]) | commands(
    "quad qquad enspace thickspace"
)
"""Dollar signs are among them: "7$2" is not 72."""
DEGREE = "\u00b0"
"""The token of a degree sign, however it was written, while an answer is read."""
TRIGONOMETRIC = commands("sin cos tan cot sec csc")
"""Functions of an angle."""
SYNONYMS = {
    "\\leq": "\\le", "\\leqslant": "\\le", "\\geq": "\\ge", "\\geqslant": "\\ge", "\\neq": "\\ne", "\\lt": "<",
    "\\gt": ">", "*": "\\cdot", "\\ast": "\\cdot", "\\dots": "\\ldots", "\\cdots": "\\ldots", "\\varnothing":
    "\\emptyset", "\\bar": "\\overline",
    "\\lbrace": "\\{", "\\rbrace": "\\}", "\\lvert": "|", "\\rvert": "|", "\\vert": "|", "\\mid": "|", "\\colon": ":",
    "%": "\\%", "\\lbrack": "[", "\\rbrack": "]", "\\prime": "'", "\\Longrightarrow": "\\implies",
    "\\bigcup": "\\cup",
}  # fmt: skip
"""Tokens that mean the same as another one."""
FUNCTIONS = commands("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp det gcd min max")
"""Commands that are functions: what follows is their argument, with braces or without."""
NUM_ARGUMENTS = {
    "\\binom": 2, "\\overline": 1, "\\mathbb": 1, "\\mathcal": 1, "\\vec": 1, "\\hat": 1, "\\bar": 1, "\\widehat": 1,
    "\\overrightarrow": 1,
}  # fmt: skip
"""How many arguments the commands take that have a number of their own."""
FRACTIONS = frozenset(["\\frac", "\\dfrac", "\\tfrac", "\\cfrac"])
"""All are fractions."""
