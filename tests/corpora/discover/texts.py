"""Small made-up documents whose topic is in their words and whose format is in their shape."""

import numpy as np

TOPICS = {
    "food": "recipe oven sugar butter flour salt pepper soup bread cheese",
    "sports": "goal match team league score player coach season ball win",
    "space": "orbit rocket planet star moon telescope launch comet galaxy mars",
}
FORMATS = {"list": "item number price buy", "story": "once then suddenly after"}
FILLER = "the a of and to in is was with for on that"


def documents(count, seed=0, noise=0.6):
    """count documents with the columns text, topic, format. noise: the share of words that say nothing."""
    rng = np.random.default_rng(seed)
    topics, formats = list(TOPICS), list(FORMATS)
    found = []
    for _ in range(count):
        topic, form = topics[rng.integers(3)], formats[rng.integers(2)]
        words = []
        for _ in range(30):
            pool = FILLER if rng.random() < noise else TOPICS[topic] if rng.random() < 0.7 else FORMATS[form]
            words.append(rng.choice(pool.split()))
        found.append({"text": " ".join(words), "topic": topic, "format": form})
    return found
