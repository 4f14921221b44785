"""What the words of a private report mean, for a reader who knows none of them."""

TERMS = {
    "score": "How well a row fits the checked rows, in one number. 0 is what a checked row in the middle "
    "scores; lower is worse.",
    "threshold": "The score below which a row is set aside.",
    "kept": "The row stays: it goes into the file kept, and a model may be trained on it.",
    "set aside": "The row is taken out. It is not deleted: it stands in a file of its own.",
    "checked rows": "Rows that somebody has read and found good. They show what a good row scores. In the "
    "settings they are called anchors.",
    "keep rate": "The share of the rows that are kept.",
    "borderline": "Near the threshold, on either side: the rows about which the score is least sure.",
    "interval": "Where the threshold would lie in 95 of 100 cases, had other checked rows of the same kind been "
    "taken. The wider it is, the more checked rows are wanted.",
    "clean recall": "Of the rows known to be good, the share that is kept. Known only in experiments.",
    "precision": "Of the kept rows, the share that is known to be good. Known only in experiments.",
    "known damage": "Somebody has labelled rows as bad, for an experiment.",
    "loss": "How unlikely the model finds the answer, per token, in nats. Text that reads like ordinary text has a "
    "loss of 1 to 3; nonsense has more.",
    "token": "A piece of text as a model reads it: a word, or a part of one.",
    "influence": "Whether learning this row helps with the checked rows. Below zero it helps less than they do "
    "each other.",
    "alignment": "How much its question helps to guess the answer. Low where the answer belongs to another "
    "question.",
    "reject": "How much more the row is like the checked rows than like rows that were rejected.",
    "checkpoint": "The model at one moment of its training. A row low at all of them looked bad from the start.",
    "decision": "Your word about a row. It wins over the score.",
    "reason": "A few words about why. They stay in this silo, beside the row.",
    "silo": "The owner of these rows. Rows never leave it.",
    "unlikely words": "Words that the model finds less likely than nearly all words of the checked rows. They often "
    "show where an answer goes wrong; a name or a rare term is marked, too.",
}
