"""What the book takes from the README: its first sentence, the commands, the lessons, sections."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADING = re.compile(r"^## (.+)$", re.M)
END_OF_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
CODE = re.compile(r"^```.*?^```$", re.M | re.S)
LESSON = re.compile(r"^\| \[(\w+)\]\(notebooks/\w+\.ipynb\) \| (.+?) \|$", re.M)


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def lead() -> str:
    """The first sentence: what B-LoRA is."""
    paragraph = readme().split("\n\n")[1]
    return END_OF_SENTENCE.split(paragraph)[0]


def commands() -> str:
    """The first code block, without what a comment says."""
    found = CODE.search(readme())
    if found is None:
        raise ValueError("README.md has no code block, so the first page has no commands.")
    return re.sub(r" +#.*$", "", found[0], flags=re.M).replace("```\n", "```bash\n", 1)


def lessons() -> dict[str, str]:
    """The name of each lesson to what one does in it."""
    return dict(LESSON.findall(readme()))


def sections() -> dict[str, str]:
    """The slug of each section to its text; the section's heading is the page's title."""
    _, *parts = HEADING.split(readme())
    texts = {}
    for heading, text in zip(parts[::2], parts[1::2]):
        raised = re.sub(r"^#(#+ )", r"\1", text, flags=re.M)
        texts[slug(heading)] = f"# {heading}\n{raised}"
    return texts
