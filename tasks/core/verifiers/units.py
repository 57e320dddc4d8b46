r"""Units at the end of an answer: words that are known to be units, and none that only look like one.

A list of what is allowed, for any word that is not refused would be a way to say "5, but not really": "5 sevenths",
"5 millions", "5 in base eight" and "5 at least" are other answers than 5.
"""

import re

_MEASURES = {
    "cm": "centimeter centimetre", "m": "meter metre", "km": "kilometer kilometre", "mm": "millimeter millimetre",
    "ft": "foot feet", "in": "inche inch", "mi": "mile", "yd": "yard", "g": "gram", "kg": "kilogram kilo",
    "mg": "milligram", "lb": "pound", "oz": "ounce", "s": "second sec", "min": "minute", "h": "hour hr",
    "l": "liter litre",
    "ml": "milliliter millilitre", "gal": "gallon", "mi per h": "mph", "km per h": "kph", "dollar": "usd buck",
    "cent": "", "euro": "", "pence": "penny", "degree": "deg", "radian": "rad", "percent": "percentage", "unit": "",
    "day": "", "week": "", "month": "", "year": "yr", "quart": "", "pint": "", "acre": "", "ton": "", "volt": "",
    "watt": "",
}  # fmt: skip
"""A unit's one spelling, and its others, without the s of the plural."""
_ABBREVIATIONS = frozenset(
    ["cm", "m", "km", "mm", "ft", "mi", "yd", "g", "kg", "mg", "lb", "oz", "s", "sec", "min", "h", "hr", "l", "ml"]
)
_COUNTED = frozenset(
    """
    answer apple arrangement bag ball block board book bottle bowl boy brick bus candy car card cat chair child
    children choice class coin color combination committee cookie cow cup digit divisor dog egg element employee
    family flower friend game girl goal guest integer item kid man marble member men mile orange outcome page
    passenger path pattern pen pencil people permutation person piece pizza plate player possibilities possibility
    prize question rectangle row sandwich school seat sequence set side slice solution spot step sticker stone
    student subset task teacher team term ticket tile toy tree triangle value vehicle vertices vote way woman women
    word worker
    """.split()  # noqa: SIM905 (a list of a hundred words, a line each)
)
"""Things that the problems of grade-school and competition mathematics count."""
_QUALIFIERS = frozenset(["square", "sq", "cubic", "cu", "per", "us"])
_SPELLINGS = {spelling: unit for unit, others in _MEASURES.items() for spelling in [unit, *others.split()]}
_KNOWN = _COUNTED | _QUALIFIERS | frozenset(_SPELLINGS)
# Words that make another number of the one before them, or take it back, even where a gold answer has them.
_NEVER = re.compile(
    r"(?:.*ths?|halves|half|thirds?|quarters?|.*illions?|thousands?|hundreds?|dozens?|squared|cubed|factorial|base|root"
    r"|point|repeating|not|no|isnt|is|if|for|when|where|with|wrong|incorrect|false|maybe|except|mod|only|unless|plus"
    r"|minus|times|over|divided|to|than|below|least|most|about|approximately|roughly|off|negative|in|am|pm)"
)
_DIMENSIONLESS = frozenset(["degree", "percent", "unit", *_COUNTED])
_PLAIN_UNIT = re.compile(
    r"(?P<number>[0-9]|\\pi|\}|\))(?:[ \t]|\\[ ,;]|~)++"
    r"(?P<words>(?:(?:square|sq|cubic|cu)\.?[ \t]+)?(?P<unit>[a-zA-Z]{2,})(?:(?:[ \t]+per[ \t]+|/)[a-zA-Z]+)?)"
    r"(?P<power>\^(?:[23]|\{[23]\}))?\.?\s*\Z"
)


def unit_of(words: str, power: str, trusted: frozenset[str] = frozenset()) -> str | None:
    r"""The unit that `words` and a power spell, in one spelling ("" where it adds nothing); None when it is no unit.

    `trusted` are words of the gold answer: what it counts may be counted.

    >>> [unit_of(words, "") for words in ["square meters", "feet", "m/s", "ways", "sevenths", "incorrect", "kittens"]]
    ['m^{2}', 'ft', 'm per s', '', None, None, None]
    >>> unit_of("kittens", "", frozenset(["kitten"]))
    ''
    """
    singular = words_of(words)
    allowed = _KNOWN | trusted
    if not singular or any(word not in allowed for word in singular):
        return None
    spelt = " ".join(_SPELLINGS.get(word, word) for word in singular if word != "us")
    for word, exponent in (("square ", "^{2}"), ("sq ", "^{2}"), ("cubic ", "^{3}"), ("cu ", "^{3}")):
        if spelt.startswith(word):
            spelt, power = spelt.removeprefix(word), exponent
    if spelt in _QUALIFIERS or spelt.startswith("per "):
        return None
    return "" if spelt in _DIMENSIONLESS | trusted - frozenset(_SPELLINGS.values()) else spelt + power


def words_of(words: str) -> list[str]:
    """The words, small and in the singular."""
    found = words.lower().replace(".", "").replace("/", " per ").strip("() ").split()
    return [word if len(word) < 3 or word in _KNOWN else word.removesuffix("s") for word in found]


def trusted_words(words: str) -> frozenset[str]:
    """Words of a gold answer that may be a unit; none where one of them says something else of the number."""
    found = words.lower().replace(".", "").replace("/", " per ").strip("() ").split()
    return frozenset() if any(_NEVER.fullmatch(word) for word in found) else frozenset(words_of(words))


def with_text_units(raw: str) -> str:
    r"""The answer with a known unit at its end, where it stands in plain letters, in \text: "12 cm", "45 degrees".

    Only after a space and a number: "2ab" has no unit, and neither have "x in" and "5 m", which may be a product.

    >>> with_text_units("720 ft^2"), with_text_units("5 mn"), with_text_units("12\\ km/h")
    ('720\\text{ ft}^2', '5 mn', '12\\text{ km/h}')
    """
    match = _PLAIN_UNIT.search(raw)
    if match is None or unit_of(match["words"], "") is None or match["unit"].lower() in ("in", "per"):
        return raw
    return f"{raw[: match.end('number')]}\\text{{ {match['words']}}}{match['power'] or ''}"


def is_lone_unit(words: str) -> bool:
    """Whether a text of one letter, or of letters and a slash, is a unit: m, s, m/s."""
    return all(part in _ABBREVIATIONS for part in words.lower().split("/"))
