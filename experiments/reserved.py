"""Which MedQuAD questions no base model of this project may read before an experiment."""

import hashlib

RESERVED_SHARE = 5  # one question in five


def is_reserved(question: str) -> bool:
    """Whether a question belongs to the fifth that pretraining leaves out.

    The split depends on the question alone, so that every script and every seed agree on it.
    """
    digest = hashlib.sha256(question.strip().encode()).digest()
    return int.from_bytes(digest[:8], "big") % RESERVED_SHARE == 0
