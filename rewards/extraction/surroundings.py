"""The words around a box → whether they retract it, offer a choice, or name another answer.

Each test reads a short stretch of text, so its cost does not grow with the completion.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

REACH = 160
TAIL = 4000
_LAST_LINE_REACH = 100
_OR_REACH = 30

_MATH_OPENING = r"(?:[\s$(){}\[*_:]|\\[(\[]|\\q?quad|\\[,; ])*"
_MATH_CLOSING = r"(?:[\s$)}\].,;*_]|\\[)\]]|\\q?quad|\\[,; ]|\\(?:text(?:bf|rm|it)?|mathrm|mbox)\s*\{)*"

_NEGATED_BEFORE = re.compile(
    r"(?:\bnot|n't|\bnever|\bcannot|\bcan not|\brather than|\binstead of|\bother than|\bexcept|\bneither|\bnor"
    r"|\bnicht|\bno es|\bn'est pas|\bnon è|\bnão é|\bне|(?<!是)不是|不为"
    r"|≠|\\neq?|!=|\b(?:wrong|incorrect(?:ly)?|false|naive|mistaken(?:ly)?|example)\b[^.,;\n$\\\d]{0,25}"
    r"|\b(?:do not|don't|never|should not|shouldn't)\s+(?:write|say|answer|box|put)\b)"
    r"(?:\s+(?:be|equal|equal to|equals|simply|just|actually|really|get|give))?" + _MATH_OPENING + r"$",
    re.IGNORECASE,
)
_NEGATED_AFTER = re.compile(
    r"^" + _MATH_CLOSING + r"(?:[,(–—-]\s*)?(?:(?:which|that|this|it|but|and|i think|the answer)\s+)*"
    r"(?:is|was|are|would be|seems|looks|must be|ca|can|could)?\s*(?:also\s+|clearly\s+|actually\s+|definitely\s+)*"
    r"(?:what (?:a|an|some|many|most|others|one)\b"
    r"|(?:wrong|incorrect|false|a mistake|mistaken|an error|impossible|invalid|rejected"
    r"|(?<=[ia]s )(?:eliminated|ruled out)|too (?:large|small|big))\b"
    r"|(?:not|n't)\s+(?:be\s+)?(?:the\s+)?"
    r"(?:correct|right|valid|answer|final|possible|true|a (?:valid|correct|possible))\b(?! that\b))"
    r"|^" + _MATH_CLOSING + r"[–—-]*\s*(?:(?:but|wait|hm+|actually|oh)\W{1,4})+no\s*(?:[.…!\n]|\Z)",
    re.IGNORECASE,
)
OR = r"(?:\b(?:or|oder|ou|или)\b|或者?)"
_ALTERNATIVE_BEFORE = re.compile(OR + r"(?: (?:maybe|perhaps|possibly|even)\b)?" + _MATH_OPENING + r"$", re.I)
_ALTERNATIVE_AFTER = re.compile(
    r"^"
    + _MATH_CLOSING
    + r"(?:\(?\s*"
    + OR
    + r"(?!\s+(?:equivalently|in other words|simply|as a|approximately|about|seja))"
    r"|alternatively\b|(?:maybe|perhaps|possibly)\b)",
    re.IGNORECASE,
)
_ALTERNATIVE_VALUE = re.compile(
    r"[\s}]*(?:\$([^$\n]{1,80})\$|\\\(([^\n]{1,80}?)\\\)|([^\s$]{1,80}?))[)\].!?$}*]*[ \t]*(?:\n|\Z)"
)
"""All that a line says after "or"."""
_RETRACTED = re.compile(
    r"\b(?:that|this|the above|it|my answer|which|the (?:above |previous |boxed )?(?:answer|value|result))"
    r"(?:\s+(?:is|was|seems|must be|'s)|'s)\s+(?:clearly\s+|actually\s+|definitely\s+)?"
    r"(?:wrong|incorrect|not (?:right|correct|the answer|valid)|a mistake|mistaken|an error|false)\b"
    r"|\bi (?:have )?made an? (?:mistake|error)\b|\bscratch that\b|\bdisregard (?:that|the|this)\b"
    r"|\b(?:just|only) (?:a guess|guessing|kidding|a placeholder)\b|\bignore (?:that|this|the) (?:answer|box)\b",
    re.IGNORECASE,
)
_CLAIM = re.compile(
    r"(?:\b(?:(?<!wrong )(?<!incorrect )(?<!of the )answer"
    r"|(?:actual|correct|real|true|right|final|proper|intended)\s+(?:result|solution|value))"
    r"(?:\s+(?:is|should be|must be|would be|equals|becomes)(?:\s+(?:thus|hence|then|therefore))?|\s*[:=])"
    r"|(?:(?<![a-z])(?:actually|correction|instead|rather|sorry|oops|(?:but|wait|oh)\W{1,9}no)|\A\W{1,9}no)\W{1,3}"
    r"(?:it|the answer|this|that)?\s*(?:is|'s|should be|must be|has to be|equals)(?: actually| really)?"
    r"|<answer>(?!\s*(?:- |\d+[.)]\s))(?=\s*[^\n<]{1,80}\s*</answer>)\s*|correction:"
    r"|\n####(?!\s*\d+[.)]\s)(?=[^\n\d]*\d[^\n]*\s*\Z)"
    r"|it (?:should|must|ought to) (?:actually |really )?be)(?P<claim>[^\n]{1,160})",
    re.IGNORECASE,
)
_PLAIN = r"-?(?:\d+(?:/\d+)?|\\[dt]?frac\{\d+\}\{\d+\})"
_PLAIN_NUMBER = re.compile(rf"[\s$]*{_PLAIN}[\s$]*")
_LAST_LINE = re.compile(
    r"(?:\A|\n)[\s*_#>$]*(?:the )?(?:final )?(?:result|solution|ans(?:wer)?|antwort|ergebnis|lösung|réponse|résultat"
    rf"|respuesta|resultado|ответ|答案|答え)[\s*_]*[:=：][\s*_$:]*(?P<claim>{_PLAIN})[\s*_$.。]*\Z",
    re.IGNORECASE,
)
"""A last line that states a whole number or a fraction as the result: `Result = 8`. A decimal may round the answer."""
_CHECKED = re.compile(
    r"```|\b(?:check|verif|vérif|substitut|plug|test|confirm|prob[ea]\b|überprüf|compro[bv]|провер|print)|验|検",
    re.IGNORECASE,
)
"""What a check comes to is not the answer: `Check: 2x + 1` and then `Result: 15`."""
_END_OF_BOLD = re.compile(r"(?<=\S)\*\*(?=[\s.,;:!?]|$)")
_STARTS_A_VALUE = frozenset("0123456789-+.\\([{√π")
_WORD = re.compile(r"(?:\\(?:text|mathrm|mathbf|textbf))?\W*(?:(?i:yes|no|true|false)|[A-J])\W*")
"""Yes, no or the letter of a choice: a claim that contradicts another such word, and nothing else."""
_CHOICE_BETWEEN = re.compile(
    r"\b(?:or|alternatively|maybe|perhaps|possibly|might|could be|may be|otherwise|either|else|guess|candidate|option"
    r"|possible|possibility|another (?:answer|option|choice|candidate|guess)|if not|alternative)\b",
    re.IGNORECASE,
)
_CORRECTION = re.compile(
    r"\b(?:wrong|incorrect|mistake|error|actually|correct(?:ing|ed|ion)?|wait|instead|fix|recheck|re-?check|redo|oops"
    r"|sorry|no,|revis\w+|not right|(?:up)?on (?:further )?reflection|second thought|reconsider\w*|re-?examin\w*"
    r"|miscount\w*|misread|overlook\w*|forgot\w*|recount\w*|recomput\w*|double[- ]check\w*)\b|\?\W{0,3}no\b",
    re.IGNORECASE,
)
_FIRST_THOUGHT = re.compile(
    r"\b(?:at first|first (?:thoughts?|got|guess(?:ed)?|impression|instinct|attempt|try|had|wrote)|initial(?:ly)?"
    r"|original(?:ly)?|na[iï]ve(?:ly)?|tempt(?:ed|ing)|lean(?:ed|ing) towards?|(?:might|may) (?:first )?"
    r"(?:think|guess|expect|suspect)|it (?:looks|seems|appears)|seemed|looked|hasty|hastily|previously|earlier)\b",
    re.IGNORECASE,
)
_TURNS = re.compile(
    r"\b(?:but|however|yet|then|though|although|check(?:ing|ed)|actual|in fact|in reality|really|turns? out"
    r"|which (?:ignore|forg[eo]t|miss)\w*)\b",
    re.IGNORECASE,
)
_SECOND_OF_SEVERAL = re.compile(
    r"\b(?:second|third|other|another|next)\s+(?:guess|option|choice|candidate|possib\w+|answer|solution)",
    re.IGNORECASE,
)
_HEDGED_BEFORE = re.compile(
    r"\b(?:or|maybe|perhaps|possibly|probably|(?:might|could|may)(?: also)? be)\b[^.;:!\n]{0,40}$", re.IGNORECASE
)
_HEDGED_AFTER = re.compile(
    r"^"
    + _MATH_CLOSING
    + r"(?:(?:is|are|as|seems|looks|works|fits)\s+)?(?:also\s+)?(?:also|too|as well|possible|plausible|another"
    r"|(?:might|may|could|would|can)\s+(?:also\s+)?(?:be|work))\b"
    r"|^[^.!?\n]{0,60}\b(?:not (?:quite )?sure|unsure|uncertain|no idea|hard to (?:say|tell))\b",
    re.IGNORECASE,
)
_INFERENCE = re.compile(
    r"\b(?:hence|thus|therefore|so|thereby|consequently|finally|implies|substitut\w+|plug\w*|using|since|next|step"
    r"|intermediate|adding|multiply\w*|giving|gives|we (?:get|have|find|obtain)|requested|desired|required)\b"
    r"|\\implies|\\Rightarrow|⇒|=>",
    re.IGNORECASE,
)
_CLAIMED = re.compile(
    r"\banswers?\b[^.\n]{0,30}(?:is|are|be|:|=)" + _MATH_OPENING + r"$"
    r"|\b(?:guess|option|candidate|try)\b[^.\n]{0,15}$",
    re.IGNORECASE,
)  # fmt: skip
_SPACE = r"\\[,;:! ]"
_OPENERS = r"(?:(?:\\left\s*)?[({]\s*)*"
_SIGN = r"(?:[-−±]|\+-|\\[pm][pm](?![A-Za-z]))"
_WRAPPERS = r"(?:\\left|\\math[a-z]+(?=\s*\{)|[({])*"
_SIGN_BEFORE = re.compile(
    r"(?:[=≈⇒→]|\\(?:approx|equiv|implies|(?:Long)?[rR]ightarrow|q?quad)|\\[(\[])\s*"
    rf"{_OPENERS}{_SIGN}(?:\s|{_SPACE})*{_WRAPPERS}\s*(?:\\\$\s*)?\{{?$"
    r"|(?:(?:^|\n)[ \t]*|\$|\*\*|(?<![\\A-Za-z])[A-Za-z]{2,}\s+|[.:,;]\s+)"
    rf"{_OPENERS}{_SIGN}(?:{_SPACE})*{_WRAPPERS}(?:\\\$)?\{{?$"
)
"""A sign of the box's own. In `x - \\boxed{5}` it joins two terms; a line `- \\boxed{5}` may be an item of a list."""
_SIGN_IN_DISPLAY = re.compile(rf"\$\$\s*{_OPENERS}{_SIGN}(?:\s|{_SPACE})*{_WRAPPERS}\s*\{{?$")
_SIGN_REACH = 60
MIN_PROSE_WORDS = 3


_NEGATING_MARKS = (
    "not", "n't", "never", "than", "instead", "except", "neither", "nor", "≠", "\\ne", "!=", "wrong", "ncorrect",
    "false", "naive", "mistaken", "example", "nicht", "no es", "'est pas", "non è", "não é", "не", "不",
)  # fmt: skip
"""Every text that `_NEGATED_BEFORE` matches contains one of these: a cheap test before the expensive one."""


def is_negated(text: str, start: int, end: int) -> bool:
    r"""Whether the box is negated: `the answer is not \boxed{5}`, `\boxed{5} is wrong`."""
    before = text[max(0, start - REACH) : start]
    lowered = before.lower()
    if any(mark in lowered for mark in _NEGATING_MARKS) and _NEGATED_BEFORE.search(before):
        return True
    return _NEGATED_AFTER.match(text[end : end + REACH]) is not None


def has_sign_before(text: str, start: int) -> bool:
    r"""Whether a box has a sign of its own: `x = -\boxed{5}`, `-\left(\boxed{5}\right)`."""
    before = text[max(0, start - _SIGN_REACH) : start]
    if _SIGN_BEFORE.search(before):
        return True
    display = _SIGN_IN_DISPLAY.search(before)
    # An odd number of $$ opens a formula; after one that closes, the sign may begin an item of a list.
    return display is not None and text.count("$$", 0, start) % 2 == 1


def is_alternative(text: str, start: int, end: int) -> bool:
    r"""Whether the box is one of several options: `either 4 or \boxed{5}`, `\boxed{5} or 6`."""
    if _ALTERNATIVE_BEFORE.search(text[max(0, start - _OR_REACH) : start]):
        return True
    return _ALTERNATIVE_AFTER.match(text[end : end + REACH]) is not None and not same_again(text, end)


def same_again(text: str, end: int) -> str:
    r"""0.5 of `\boxed{\frac12} or 0.5`, where the line ends with it: perhaps the answer in another spelling."""
    following = text[end : end + REACH]
    offered = _ALTERNATIVE_AFTER.match(following)
    value = _ALTERNATIVE_VALUE.match(following, offered.end()) if offered else None
    return next(filter(None, value.groups()), "") if value else ""


def is_retracted(tail: str) -> bool:
    """Whether the text after the answer retracts it."""
    return len(tail) > 4 and _RETRACTED.search(tail[:TAIL]) is not None


def later_claims(answers: Sequence[str], tail: str) -> list[str]:
    """Values that the text after the answer states as the answer, as written. `answers` are the answer and what was
    expected."""
    claims, words = [], all(map(_WORD.fullmatch, answers))
    for match in _CLAIM.finditer(tail[:TAIL]):
        claim = _first_statement(match.group("claim"))
        if claim[:1] in _STARTS_A_VALUE or (words and _WORD.fullmatch(claim)):
            claims.append(claim)
    return [*claims[-3:], *(_last_line(tail) if all(map(_PLAIN_NUMBER.fullmatch, answers)) else [])]


def _last_line(tail: str) -> list[str]:
    """The number that the last line states as the result. It contradicts none but a number: `Result: 420` may well be
    said of 7 hours, of the choice B or of one coordinate."""
    found = _LAST_LINE.search(tail[-_LAST_LINE_REACH:])
    return [found["claim"]] if found and not _CHECKED.search(tail[:TAIL]) else []


def _first_statement(text: str) -> str:
    """The value at the start of `text`: up to the end of the sentence or of the formula."""
    again = re.match(r".*\banswer\s*(?:is|:|=)(?P<rest>.+)", text, re.IGNORECASE)
    text = _END_OF_BOLD.sub("", (again.group("rest") if again else text).strip().lstrip("*:} ")).strip()
    formula = re.match(r"\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", text)
    if formula:
        return next(group for group in formula.groups() if group is not None)
    return re.split(
        r"\.(?!\d)|[;!?。，；]|</|,\s|\s(?:because|since|as|which|and|so|by|for|of course|\()\b", text, maxsplit=1
    )[0].strip(" *")


def choice_between(gap: str) -> bool:
    """Whether the words between two different boxes offer them as options."""
    return bool(_CHOICE_BETWEEN.search(gap))


def is_hedged(gap: str, after: str) -> bool:
    r"""Whether the second of two different boxes is only an option: `but maybe \boxed{4}`, `\boxed{4} also works`."""
    return bool(_HEDGED_BEFORE.search(gap[-REACH:]) or _HEDGED_AFTER.match(after[:REACH]))


def was_first_thought(before: str, gap: str) -> bool:
    r"""Whether the first of two boxes is told as an earlier idea: `at first \boxed{3}, but then \boxed{4}`."""
    clause = re.split(r"[.!?\n]", before[-REACH:])[-1] + " " + re.split(r"[.!?\n;]", gap[:REACH])[0]
    return bool(_FIRST_THOUGHT.search(clause) and _TURNS.search(clause + gap) and not _SECOND_OF_SEVERAL.search(gap))


def supersedes(gap: str) -> bool:
    """Whether the words between two different boxes make the first a step towards the second."""
    words = len(re.findall(r"[A-Za-z]{2,}", gap))
    return words >= MIN_PROSE_WORDS and (_INFERENCE.search(gap) is not None or words > 3 * MIN_PROSE_WORDS)


def corrects(gap: str) -> bool:
    return bool(_CORRECTION.search(gap))


def is_claimed(text: str, start: int) -> bool:
    r"""Whether the text presents this box as the final answer: `The answer is \boxed{5}`."""
    return bool(_CLAIMED.search(text[max(0, start - 60) : start]))
