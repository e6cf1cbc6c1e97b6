"""Text answers: fixed phrases, yes and no, choices, dates and times, and words that are not an answer."""

from __future__ import annotations

import re

from rewards.reading.shapes import Domain, Expression, Items, Moment, Node, Unusable, Words
from rewards.spelling.clean import unwrapped
from rewards.spelling.split import without_text

_FOLDED: dict[str, Node] = {
    phrase: node
    for node, phrases in (
        (Domain("R"), ("all reals", "all real", "reals", "all real x")),
        (Domain("Z"), ("all integers", "integers", "any integer", "set of all integers", "every integer")),
        (Items((), "set"), ("empty set", "null set", "no such number exists", "no values", "none")),
        (
            Words("undefined"),
            ("undefined", "does not exist", "dne", "not defined", "limit does not exist", "doesn't exist"),
        ),
        (
            Expression(r"\infty"),
            ("infinity", "infinite", "plus infinity", "positive infinity", "infinitely many", "unbounded"),
        ),
        (Expression(r"-\infty"), ("negative infinity", "minus infinity")),
        (Words("yes"), ("yes",)), (Words("no"), ("no",)), (Words("true"), ("true",)), (Words("false"), ("false",)),
    )
    for phrase in phrases
}  # fmt: skip
_NUMBERS = re.compile(
    r"(?:(?:set of )?(?:all )?(?P<kind>real|complex|rational|natural) (?:numbers|values)(?: of [a-z])?"
    r"|(?:any|every) (?P<one>real|complex|rational|natural) number)"
)
_LETTERS = {"real": "R", "complex": "C", "rational": "Q", "natural": "N"}
_INTERVALS = {
    f"all {sign} {numbers}": interval
    for sign, interval in {
        "positive": r"(0,\infty)", "negative": r"(-\infty,0)",
        "non negative": r"[0,\infty)", "nonnegative": r"[0,\infty)",
        "non positive": r"(-\infty,0]", "nonpositive": r"(-\infty,0]", "nonzero": r"\mathbb{R}\setminus\{0\}",
        "non zero": r"\mathbb{R}\setminus\{0\}",
    }.items()
    for numbers in ("real numbers", "reals", "real values of x", "real x")
}  # fmt: skip
_SUBJECT = (
    r"(?:(?:this |given )*(?:equations?|inequality|inequalities|system(?: of (?:[a-z]+ )?equations)?|problem) "
    r"ha(?:s|ve) |there (?:is|are|exists?) |it has |has )?"
)
_SOLUTIONS: tuple[tuple[re.Pattern[str], Node], ...] = (
    (re.compile(_SUBJECT + r"no (?:real |integer )?(?:solution|root)s?(?: exists?)?"), Items((), "set")),
    (re.compile(_SUBJECT + r"(?:infinitely many|infinite|an infinite number of) solutions?"), Expression(r"\infty")),
)
_LEAD = re.compile(
    r"(?:\\text\s*\{\s*)?(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|solution|result)s?\s*\}?\s*(?:is|are|:|=)\s*:?\s*\}?\s*"
    r"(?P<rest>(?!(?!sqrt|pi)[A-Za-z]{2}).+)",
    re.I | re.DOTALL,
)
_ALL = re.compile(
    r"(?:\\text\s*\{\s*)?(?:for\s+)?all(?:\s+real)?(?:\s+numbers?|\s+values?(?:\s+of)?)?\s*\}?\s*"
    r"(?P<rest>[a-z]\s*(?:[<>]|\\(?:le|ge|ne|in)(?![a-z])).+)",
    re.DOTALL,
)
_EXPLAINED = re.compile(r"(?P<verdict>yes|no|true|false)[,.;:]\s+(?P<why>[a-z']+(?: [a-z0-9']+)+)")
_DOUBTS = (
    r"\b(?:but|or|if|only|unless|except|however|although|maybe|perhaps|sometimes|might|(?:may|could) be"
    r"|wait)\b"
)
_ASSENT_TAKEN_BACK = re.compile(
    _DOUBTS
    + r"|(?:\bnot|n't|cannot)(?:$| (?:always|in general|generally|necessarily|quite|really|true|the case|every|all)\b)"
    r"|\b(?:no|false|wrong|incorrect|when|provided|assuming|otherwise|mostly|usually|often|depend(?:s|ing)?|most of"
    r"|(?:in|for|under|at) (?:some|most|many|certain|special))\b"
)
_DENIAL_TAKEN_BACK = re.compile(
    _DOUBTS + r"|\byes\b|(?<!not )\btrue\b"
    r"|^(?:it|this|that|they|there|we|one) (?:is|are|does|do|can|has|have|will|exists?)$"
)
"""Yes, it is continuous, and no, not always; but not: yes, not always, and no, it is."""
_ALL_BUT = re.compile(
    r"(?:the )?(?:set of )?(?:all |any |every )?"
    r"(?:(?P<name>real(?: number| value)?s?|integers?)(?: of)?|\\mathbb\{(?P<letter>[RZ])\}|values of(?= [a-z] ))"
    r"(?: [a-z])?,? (?:except(?: for)?|excluding|other than|but|besides|not equal to) (?P<rest>.+)",
    re.DOTALL,
)
_BUT = re.compile(r"except|excluding|other than|but|besides|not equal")
_CROSSES = frozenset("❌✗✘☒")
_PLACEHOLDER = re.compile(
    r"[?_.\s\\*#-]*|(?:your|the|my|final|insert|put|write|enter|fill|correct)?\s*(?:final\s+)?"
    r"(?:answer|result|solution)(?:\s+here)?|answer here|xxx+|tbd|todo|n/?a|nan|null|\[.*(?:answer|result).*\]|<.*>"
    r"|unknown|i don'?t know|see above|same as (?:the )?reference",
    re.IGNORECASE,
)
NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate([
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
    ])
}  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_PARTS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10,
}  # fmt: skip
_UNITS = list(NUMBER_WORDS)[1:10]
_SPELLED = {
    **NUMBER_WORDS,
    **{ten: str(10 * value) for value, ten in enumerate(TENS, 2)},
    **{f"{ten} {unit}": str(10 * n + k) for n, ten in enumerate(TENS, 2) for k, unit in enumerate(_UNITS, 1)},
    **{
        f"{unit} {part}{'s' if k > 1 else ''}": rf"\frac{{{k}}}{{{n}}}"
        for part, n in _PARTS.items()
        for k, unit in enumerate(_UNITS, 1)
    },
    **{f"{unit} and a half": rf"\frac{{{2 * k + 1}}}{{2}}" for k, unit in enumerate(_UNITS, 1)},
    "half": r"\frac{1}{2}", "hundred": "100", "thousand": "1000", "million": "1000000", "dozen": "12",
}  # fmt: skip
"""Numbers in words; not "second", which is a unit of time."""
NUMBERS_BEGIN = {name.split()[0] for name in _SPELLED} | {"minus", "negative"}
_LARGE = (("million", 1_000_000, 1_000), ("thousand", 1_000, 1_000), ("hundred", 100, 100))
"""Name, size, and how many of them at most are said (twelve hundred, but no thousand thousand); largest first."""
_CHOICE_WORD = r"(?:[Oo]ption|OPTION|[Cc]hoice|[Aa]nswer|[Aa]lternative|[Ss]tatement|[Ll]etter)"
_CHOICE = re.compile(
    rf"(?:{_CHOICE_WORD}\s+)?(?P<open>\(?)\s*(?P<letter>[A-J]|(?<=\()[a-j](?=\)$))\s*(?P<mark>[).:])(?!\S\s*[:=]|[A-Z]\s*=)\s*(?P<rest>.*)",
    re.DOTALL,
)
_NAMED_CHOICE = re.compile(
    rf"(?:(?:[Tt]he )?(?:[Cc]orrect|[Rr]ight|[Bb]est) )?{_CHOICE_WORD}(?: is)?\s*:?\s*\(?([A-Ja-j])\)?"
)
_CONTINUES = re.compile(
    r"(?:and|or|wrong|incorrect)\b"
    r"|(?:is|was|can?|could)(?:(?:n't|not|\b.*\bnot)\s*(?:\Z|[,.;]|(?:be )?(?:the )?(?:right|correct|valid|true|answer"
    r"|it)\b)"
    r"|\b.*\b(?:wrong|incorrect|false|invalid|impossible|ruled out|eliminated|excluded|rejected)\b)"
    r"|[=(^_+\-*/,;?|&]|\\(?:cup|cap|times|cdot|setminus|le|ge|ne|in|to|subset|and|or)(?![a-z])"
)
_TIME = re.compile(
    r"(?P<hour>\d{1,2})(?:\s*:\s*(?P<minute>\d{2}))?(?:\s*:\s*(?P<second>\d{2}))?\s*(?P<half>[ap])\.?\s*m\.?",
    re.IGNORECASE,
)
_MONTHS = [
    "january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
    "december",
]  # fmt: skip
_MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" for month in _MONTHS)
_DATE = (
    re.compile(rf"(?P<month>{_MONTH})\.?\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:\s*,?\s+(?P<year>\d{{4}}))?", re.I),
    re.compile(
        rf"(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<month>{_MONTH})\.?(?:\s*,?\s+(?P<year>\d{{4}}))?", re.I
    ),
)
_ARTICLES = re.compile(r"^(?:a|an|the)\s+")
FUNCTION_NAMES = frozenset([
    "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "arcsin", "arccos", "arctan", "sinh", "cosh",
    "tanh", "gcd", "lcm", "max", "min", "mod", "det", "dim", "deg", "ker", "arg", "pi", "inf", "abs", "floor", "ceil",
    "theta", "alpha", "beta", "gamma", "frac",
])  # fmt: skip
_LETTER_RUN = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
# Two letters in a row of which one is neither Latin without an accent nor Greek, which may be mathematics.
_OTHER_SCRIPT = re.compile(r"(?=[^\W\d_]{2}).?[^\W\d_a-zA-ZͰ-Ͽ]")


_OPENED_TEXT = re.compile(r"\\text\s*\{")
_BELOW_ZERO = re.compile(r"(?:minus|negative) ")
_MINUS = re.compile(r"(?:\\text\s*\{\s*)?(?:minus|negative)\s*\}?\s*(?P<number>\d+(?:[./]\d+)?)", re.IGNORECASE)


def fold(text: str) -> str:
    r"""Normalize words for comparison: drop \text, case, punctuation, articles and repeated spaces."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"[{}$\"“”]|\\(?=\s)", "", text.replace("~", " "))
    text = re.sub(r"[\s_-]+", " ", text).strip(" .,:;!").lower()
    return _ARTICLES.sub("", text)


def placeholder(text: str) -> Unusable | None:
    """Recognize `?`, `...`, `answer`, `nan`, which answer nothing, and (C) ❌, which is crossed out."""
    if not text.isascii() and not _CROSSES.isdisjoint(text):
        return Unusable("crossed_out", text)
    if text.replace(" ", "") == r"\{\}":
        return None  # the empty set
    return Unusable("placeholder") if _PLACEHOLDER.fullmatch(fold(text)) or not text.strip() else None


def phrase(text: str) -> Node | str | None:
    """The meaning of a fixed phrase: a node, or mathematics to be read in its place."""
    if below := _MINUS.fullmatch(text):
        return f"-{below['number']}"
    folded = fold(text)
    if re.match(r"-\S", _OPENED_TEXT.sub("", text).lstrip("{ ")):
        folded = f"minus {folded}"  # `fold` drops the sign; before a space it may mark an item of a list
    if numbers := _NUMBERS.fullmatch(folded):
        return Domain(_LETTERS[numbers["kind"] or numbers["one"]])
    found = _FOLDED.get(folded) or _spelled(folded) or _INTERVALS.get(folded)
    if found is None and (below := _BELOW_ZERO.match(folded)) and (number := _spelled(folded[below.end() :])):
        return f"-{number}"
    if found is None and (explained := _EXPLAINED.fullmatch(folded)):
        taken_back = _ASSENT_TAKEN_BACK if explained["verdict"] in {"yes", "true"} else _DENIAL_TAKEN_BACK
        if not taken_back.search(explained["why"]):
            return Words(explained["verdict"])
    if found is None and ("solution" in folded or "root" in folded):
        return next((node for pattern, node in _SOLUTIONS if pattern.fullmatch(folded)), None)
    return found


def _spelled(folded: str) -> str | None:
    """One hundred and twenty, two thousand twenty-four → the number in digits; other words as `_SPELLED` has them."""
    for name, size, limit in _LARGE:
        many, found, rest = folded.partition(f" {name}")
        if found:
            head, tail = _spelled(many), _spelled(rest.removeprefix(" and").lstrip()) if rest else "0"
            if not (head and tail and f"{head}{tail}".isdigit() and 0 < int(head) < limit):
                return None
            return str(int(head) * size + int(tail)) if not rest or 0 < int(tail) < size else None
    return _SPELLED.get(folded)


def after_lead(text: str) -> str | None:
    r"""Answer: 5 → 5; all real x > 5 → x > 5."""
    match = _LEAD.fullmatch(text) or _ALL.fullmatch(text)
    return unwrapped(match.group("rest")) if match else None


def all_but(text: str) -> tuple[str, str] | None:
    """All real numbers except 0 → the letter of the domain, and the exceptions."""
    if not _BUT.search(text):
        return None
    match = _ALL_BUT.fullmatch(without_text(text))
    if match is None:
        return None
    return match.group("letter") or ("Z" if (match.group("name") or "").startswith("int") else "R"), match.group("rest")


def choice(text: str) -> tuple[str, str] | None:
    """(C), C), C., (C) 42 → the letter and the rest. A bare C is not a choice."""
    bare = re.sub(r"\\text\s*\{([^{}]*)\}|\{(\(?[A-J]\)?)\}", r"\1\2 ", text).strip()
    named = _NAMED_CHOICE.fullmatch(re.sub(r"[{}]", "", bare).strip(" ."))
    if named:
        return named.group(1).upper(), ""
    match = _CHOICE.fullmatch(bare)
    if match is None or (match.group("open") and match.group("mark") != ")"):
        return None
    rest = match.group("rest").strip()
    if _CONTINUES.match(rest):
        return None
    return match.group("letter").upper(), rest


def moment(text: str) -> Moment | None:
    """A time of day or a date in canonical form: 8:00 p.m. → 20:00; June 20 and 20th of June → 20 june."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}|[{}\\]", r"\1 ", text).strip()
    text = re.sub(r"\s+", " ", text).removeprefix("on ").removeprefix("the ")
    match = _TIME.fullmatch(text)
    if match:
        hour = int(match.group("hour")) % 12 + (12 if match.group("half").lower() == "p" else 0)
        return Moment(f"{hour:02d}:{match.group('minute') or '00'}:{match.group('second') or '00'}")
    for pattern in _DATE:
        match = pattern.fullmatch(text)
        if match:
            month = next(name for name in _MONTHS if name.startswith(match.group("month").lower()[:3]))
            return Moment(f"{int(match.group('day'))} {month} {match.group('year') or ''}".strip())
    return None


def words(text: str) -> Words | None:
    r"""Ordinary words, not a product of letters: three or more letters in a row outside commands, or a word that is
    not spelled with a to z alone, such as да, sí or 東京."""
    bare = without_text(text)
    if re.search(r"[=<>^\\+*/|]|\d", bare):
        return None
    runs = _LETTER_RUN.findall(bare)
    is_word = any(len(run) >= 3 and run.lower() not in FUNCTION_NAMES for run in runs)
    if is_word or r"\text" in text or _OTHER_SCRIPT.search(bare):
        return Words(fold(text))
    return None
