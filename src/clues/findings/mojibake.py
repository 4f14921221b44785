"""Letters that a wrong encoding has broken, as the detector of ftfy sees them."""

import re
from collections.abc import Iterator

from clues.data.samples import Sample
from clues.findings.base import Finding, in_answer

# Chinese for "read with the wrong table": what replacement characters and UTF-8 become in GBK.
_OTHERS = re.compile("\N{REPLACEMENT CHARACTER}+|锟斤拷|烫烫烫|鈥[檚檛檙渓滀滃溾]|[ÃÂâ][\x80-\x9f]")


def mojibake(sample: Sample) -> Iterator[Finding]:
    """At most one finding: from the first broken place to the last."""
    from ftfy import badness, fix_encoding  # a tenth of a second, for runs that look

    answer = sample.response
    if answer.isascii():
        return
    places = [match.span() for match in _OTHERS.finditer(answer)]
    sure = bool(places)
    for match in badness.BADNESS_RE.finditer(answer):
        places.append(match.span())
        # What can be read in another way was written in that way; the rest is only unusual.
        sure = sure or fix_encoding(answer) != answer
    if places:
        span = min(start for start, _ in places), max(end for _, end in places)
        yield in_answer(sample, "mojibake", span, sure=sure)
