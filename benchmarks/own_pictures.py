"""Pictures of one's own on the teaching model: are they rebuilt, and do they mix?

    python benchmarks/own_pictures.py FOLDER     # about 15 seconds a picture

Trains a B-LoRA of every picture of a folder with the defaults, as the command line does. Then:

- rebuilt: both halves of one picture, compared with it pixel by pixel (`blora_nb.rebuild`).
- mixtures: each picture's content in the next one's style. Among all pictures, is the silhouette
  nearest to the content picture's, and the palette nearest to the style picture's?

No trained judge takes part: a silhouette is what differs from the colour of the border, a palette
is a histogram of colours. Writes outputs/own_pictures.png and prints the rest.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from blora_nb import generate, load_pipeline, picture_grid, rebuild, train
from blora_nb.defaults import native_resolution
from blora_nb.evaluation.rebuilding import Rebuilt
from blora_nb.files.image_folders import find_images
from blora_nb.files.images import centre_square, read_image
from report import OUTPUTS, table

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline
    from matplotlib.figure import Figure

PROMPT = "A [c] in [s] style"
BINS = 6  # of each colour channel


def silhouette(image: Image.Image) -> np.ndarray:
    """How far each pixel is from the colour of the border: [height, width], mean 0 and length 1."""
    pixels = np.asarray(image, np.float64) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    distance = np.linalg.norm(pixels - np.median(border, axis=0), axis=2)
    distance = distance - distance.mean()
    return distance / max(np.linalg.norm(distance), 1e-9)


def palette(image: Image.Image) -> np.ndarray:
    """The share of the pixels in each of BINS³ boxes of colours, and what spills into the next."""
    place = np.asarray(image, np.float64).reshape(-1, 3) / 255 * (BINS - 1)
    low, counts = np.floor(place).astype(int), np.zeros((BINS, BINS, BINS))
    upper_share = place - low
    for corner in np.ndindex(2, 2, 2):
        share = np.prod(np.where(corner, upper_share, 1 - upper_share), axis=1)
        red, green, blue = np.minimum(low + corner, BINS - 1).T
        np.add.at(counts, (red, green, blue), share)
    return counts / counts.sum()


def nearest_silhouette(image: Image.Image, others: list[Image.Image]) -> int:
    shape = silhouette(image)
    return int(np.argmax([(shape * silhouette(other)).sum() for other in others]))


def nearest_palette(image: Image.Image, others: list[Image.Image]) -> int:
    colours = palette(image)
    return int(np.argmax([np.minimum(colours, palette(other)).sum() for other in others]))


@dataclass
class OwnPictures:
    """Pictures, what became of them, and how alike that is.

    Attributes:
        mixed: each picture's content in the style of the one `apart` places further.
        found: of each mixture, whether its silhouette is nearest to its content picture's, and its
            palette to its style picture's, among all.
    """

    names: list[str]
    pictures: list[Image.Image]
    apart: int
    rebuilt: list[Rebuilt]
    mixed: list[Image.Image]
    found: list[tuple[bool, bool]]

    def style_of(self, place: int) -> int:
        return (place + self.apart) % len(self.pictures)

    @property
    def gains(self) -> np.ndarray:
        """How much better each is rebuilt than by one colour, in dB."""
        return np.array([rebuilt.gain for rebuilt in self.rebuilt])

    def table(self) -> str:
        columns = ["rebuilt dB", "above one colour", "in the style of", "silhouette", "palette"]
        cells = []
        for i, (rebuilt, found) in enumerate(zip(self.rebuilt, self.found, strict=True)):
            numbers = [f"{rebuilt.psnr:.1f}", f"{rebuilt.gain:+.1f}"]
            verdicts = ["yes" if verdict else "no" for verdict in found]
            cells.append([self.names[i], *numbers, self.names[self.style_of(i)], *verdicts])
        return table(columns, cells)

    def in_words(self) -> str:
        shapes_right, palettes_right = np.mean(self.found, axis=0)
        return (
            f"Rebuilt to {np.mean([r.psnr for r in self.rebuilt]):.1f} dB on average; "
            f"{(self.gains >= 3).mean():.0%} are better than one colour by 3 dB or more, "
            f"{(self.gains >= 4).mean():.0%} by 4 dB. Mixtures, among {len(self.pictures)}: "
            f"silhouette nearest {shapes_right:.2f}, palette nearest {palettes_right:.2f}."
        )

    def figure(self) -> "Figure":
        styles = [self.pictures[self.style_of(i)] for i in range(len(self.pictures))]
        rows = [self.pictures, [r.image for r in self.rebuilt], styles, self.mixed]
        labels = ["picture", "rebuilt", "style picture", "mixture"]
        return picture_grid(rows, labels, side=0.9)


def measure(
    pipe: "StableDiffusionXLPipeline", named: dict[str, Image.Image], apart: int = 1
) -> OwnPictures:
    """Train a B-LoRA of each picture, rebuild it, and draw it in another one's style."""
    side = native_resolution(pipe)
    pictures = [centre_square(picture, side) for picture in named.values()]
    bloras = [train(pipe, picture, progress=False) for picture in tqdm(pictures, desc="B-LoRAs")]
    rebuilt = [rebuild(pipe, b, p) for b, p in zip(bloras, pictures, strict=True)]
    result = OwnPictures(list(named), pictures, apart, rebuilt, [], [])
    for i, content in enumerate(tqdm(bloras, desc="mixtures")):
        j = result.style_of(i)
        image = generate(pipe, PROMPT, content=content, style=bloras[j], progress=False)[0]
        result.mixed.append(image)
        found = nearest_silhouette(image, pictures) == i, nearest_palette(image, pictures) == j
        result.found.append(found)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--apart", type=int, default=1, help="content i, style i + APART")
    args = parser.parse_args()
    named = {path.name: read_image(path) for path in find_images(args.folder)}
    result = measure(load_pipeline(args.base, device="cpu"), named, args.apart)
    print(f"{result.table()}\n{result.in_words()}")
    OUTPUTS.mkdir(exist_ok=True)
    result.figure().savefig(OUTPUTS / "own_pictures.png")


if __name__ == "__main__":
    main()
