"""24 drawings made for measurements, none of which the teaching model has seen; pairs of them."""

from PIL import Image

from blora_nb.course.drawings import HELD_OUT_STYLES, MORE_OBJECTS, OBJECTS, STYLES, draw
from blora_nb.evaluation.metrics import JudgeScorer

PROMPT = "A [c] in [s] style"
COUNT = 24
SEED = 1_000_000  # poses that no example of the course has

Pictures = dict[str, Image.Image]  # "cat_neon" → picture


def drawings() -> Pictures:
    """Each of 20 objects at least once, in 16 styles; names are "object_style"."""
    objects, styles = [*OBJECTS, *MORE_OBJECTS], [*STYLES, *HELD_OUT_STYLES]
    found = {}
    for i in range(COUNT):
        name, style = objects[i % len(objects)], styles[(5 * i + i // len(objects)) % len(styles)]
        found[f"{name}_{style}"] = draw(name, style, SEED + i, 512)
    return found


def pairs(pictures: Pictures) -> list[tuple[str, str]]:
    """A style picture for each content picture, by name: both object and style differ."""
    names = list(pictures)
    result = []
    for i, content in enumerate(names):
        others = (names[(i + step) % len(names)] for step in range(5, len(names)))
        result.append((content, next(other for other in others if differ(content, other))))
    return result


def differ(one: str, other: str) -> bool:
    """Whether two names share neither object nor style."""
    return all(a != b for a, b in zip(one.split("_"), other.split("_")))


def verdicts(
    scorer: JudgeScorer, images: list[Image.Image], content: str, style: str, pictures: Pictures
) -> list[tuple[bool, bool]]:
    """For each image: of all pictures, is the one most like it in shape of the content's object?

    And is the one most like it in style of the style's?
    """
    object_name, style_name = content.split("_")[0], style.split("_")[1]
    return [
        (shape.split("_")[0] == object_name, look.split("_")[1] == style_name)
        for shape, look in scorer.find(images, pictures)
    ]
