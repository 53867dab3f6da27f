"""Random captions and answers by seed, on which our scorers are compared with the official ones."""

import random

THINGS = [
    "man",
    "woman",
    "dog",
    "cat",
    "child",
    "bus",
    "horse",
    "surfer",
    "pizza",
    "kite",
    "bench",
    "clock",
    "giraffe",
    "skateboard",
    "laptop",
    "umbrella",
]
LOOKS = [
    "red",
    "small",
    "old",
    "young",
    "wooden",
    "black-and-white",
    "striped",
    "two-story",
    "blue",
    "large",
    "smiling",
    "snow-covered",
]
DOES = [
    "riding",
    "holding",
    "standing",
    "sitting",
    "looking",
    "flying",
    "eating",
    "playing",
    "jumping",
    "walking",
    "talking",
    "parked",
]
SCENES = [
    "street",
    "beach",
    "table",
    "field",
    "kitchen",
    "park",
    "snow",
    "road",
    "mountain",
    "living",
    "room",
    "baseball",
    "game",
]
ODD = ["t-shirt", "don't", "it's", "woman's", "4 x 4", "10", "3:30", "u.s.", "mr. smith", "(left)", '"stop"', "& more"]
ENDS = [".", "", " .", "!", "...", ", on a sunny day.", "; seen from above.", " -- outdoors."]

ANSWERS = [
    "yes",
    "no",
    "2",
    "two",
    "red",
    "a red bus",
    "the dog",
    "Yes.",
    "NO!",
    "1,000",
    "10.5",
    "3:30 pm",
    "don't know",
    "dont know",
    "its",
    "it's",
    "black and white",
    "black & white",
    "stop sign",
    "stop-sign",
    "on the left",
    "left,right",
    "none",
    "zero",
    "coca cola",
    "coca-cola",
    "u.s.",
    '"stop"',
    "weve",
    "oclock",
    "baseball  game",
    "New York\n",
    "7-11",
    "50%",
    "$5",
    "a",
    "an apple",
    "(unknown)",
    "man's",
    "no one",
    "unanswerable",
]


def caption(chance: random.Random) -> str:
    """One sentence about a scene, with the punctuation that people type."""
    words = ["A", chance.choice(LOOKS), chance.choice(THINGS), "is", chance.choice(DOES)]
    words += ["with", "a", chance.choice(THINGS)] * chance.randint(0, 1)
    words += [chance.choice(ODD)] * (chance.random() < 0.3)
    words += ["on", "the", chance.choice(SCENES)] * chance.randint(0, 2)
    return " ".join(words) + chance.choice(ENDS)


def captions(count: int, *, seed: int) -> list[tuple[str, list[str]]]:
    """An answer and five references for each of `count` queries; a fifth of the answers are (parts of) references."""
    chance = random.Random(f"captions {seed}")
    pairs = []
    for _ in range(count):
        references = [caption(chance) for _ in range(5)]
        answer = caption(chance)
        kind = chance.random()
        if kind < 0.1:
            answer = chance.choice(references)
        elif kind < 0.2:
            answer = " ".join(chance.choice(references).split()[: chance.randint(1, 6)])
        pairs.append((answer, references))
    return pairs


def people(count: int, *, seed: int) -> list[tuple[str, list[str]]]:
    """An answer and the answers of ten people for each of `count` questions, some with only one answer."""
    chance = random.Random(f"people {seed}")
    pairs = []
    for _ in range(count):
        few = chance.sample(ANSWERS, chance.choice([1, 2, 3, 4]))
        pairs.append((chance.choice([*few, chance.choice(ANSWERS)]), [chance.choice(few) for _ in range(10)]))
    return pairs


def short(count: int, *, seed: int) -> list[tuple[str, list[str]]]:
    """An answer and one to three right ones, words and numbers, which are often similar."""
    chance = random.Random(f"short {seed}")
    pairs = []
    for _ in range(count):
        right = [
            chance.choice([number(chance), chance.choice(ANSWERS), caption(chance)])
            for _ in range(chance.randint(1, 3))
        ]
        answer = chance.choice([*right, chance.choice(ANSWERS), number(chance)])
        if chance.random() < 0.6:
            index = chance.randrange(len(answer) + 1)
            answer = answer[:index] + chance.choice(["", "x", "1", " ", "%"]) + answer[index + chance.randint(0, 1) :]
        pairs.append((answer.swapcase() if chance.random() < 0.2 else answer, right))
    return pairs


def number(chance: random.Random) -> str:
    """A number as in charts: an integer, a decimal number, with or without a percent sign."""
    value = chance.choice([chance.randint(0, 40), round(chance.uniform(-5, 5), 2), chance.randint(1, 9) * 1000])
    return f"{value}{chance.choice(['', '', '%'])}"


def yes_or_no(count: int, *, seed: int) -> list[tuple[str, str]]:
    """A model's reply to a yes-or-no question and the right word, for `count` questions."""
    chance = random.Random(f"said {seed}")
    words = [
        "yes",
        "no",
        "Yes",
        "No",
        "Yes, there is.",
        "No, it is not",
        "not at all",
        "There is a dog.",
        "YES!",
        "y",
        "n",
        "nope",
        "I know. Yes",
        "none",
    ]
    return [(chance.choice(words), chance.choice(["yes", "no"])) for _ in range(count)]


def choice_answers(count: int, *, seed: int) -> list[tuple[str, tuple[str, ...]]]:
    """(what a model wrote, the choices): letters and texts of choices in many forms, and texts that name none."""
    import letter_forms as forms

    draw = random.Random(seed)
    things = [f"a {look} {thing}" for look in LOOKS[:4] for thing in THINGS[:8]]
    rows = []
    for _ in range(count):
        choices = tuple(draw.sample(things, 4))
        number = draw.randrange(4)
        others = [text for text in choices if text != choices[number]]
        names = {"L": "ABCD"[number], "l": "abcd"[number], "T": choices[number], "O": others[0], "P": others[1]}
        text = draw.choice(
            (*forms.FORMS, "{T}", "{T}.", "It is {T}.", "{O} or {T}", "I see {T} in the picture of a dog.")
        )
        text = draw.choice(forms.UNREAD) if draw.random() < 0.1 else text.format(**names)
        rows.append((text, choices))
    return rows


def open_answers(count: int, *, seed: int) -> list[tuple[str, list[str]]]:
    """(what a model wrote, the right answers): numbers, units and words, alone and in sentences."""
    draw = random.Random(seed)
    golds = ["60", "50%", "1,200", "3.14159", "-7", "Ural Mountains", "x", "$5", "2e3", "0.5", "yes", "1/2"]
    forms = ["{}", "{}.", "The answer is {}.", "x = {}", "So it is about {}", "It could be {} or 4, 8, {} and 9"]
    forms += ["First 3.\nThen {}", "result: {}", "{} is the final answer", "final answer {}", "Thus, {} meters", "is :"]
    rows = []
    for _ in range(count):
        gold = draw.choice(golds)
        said = gold if draw.random() < 0.6 else draw.choice(golds)
        said = draw.choice([said, said.upper(), f"{said}0", f" {said} "])
        right = [gold] if draw.random() < 0.8 else [gold, draw.choice(golds)]
        rows.append((draw.choice(forms).replace("{}", said), right))
    return rows
