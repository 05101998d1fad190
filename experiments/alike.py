"""How the limits of `vsrn.search.alike` and the weight of words beside a photo were chosen, on Flickr8K.

python experiments/alike.py dataset_flickr8k.json images/ work/

Copies of 150 photos are made: JPEG of quality 30, half the size, lighter, and 2 and 4 % cut from each side. Printed are
how many of them, and of all pairs of different photos, are taken for the same picture. Then, of photos that show a
thing and not a setting, searched together with words for the setting: which share of the ten best hits shows both, by
the captions.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from vsrn.metrics import FloatArray
from vsrn.pretrained import find_model
from vsrn.search.alike import LEAST_CORRELATION, LEAST_COSINE, small_picture
from vsrn.search.build import update_index
from vsrn.search.index import Index

COPIED, FIRST, SEED = 150, 10, 1
THINGS = (
    "dog|dogs|puppy",
    "boy|boys",
    "girl|girls",
    "man|men",
    "woman|women|lady",
    "bike|bicycle|biker|cyclist",
    "ball",
)
SETTINGS = {
    "in the snow": "snow|snowy",
    "on the beach": "beach|sand|sandy",
    "in water": "water|pool|lake|ocean|river",
    "on grass": "grass|grassy|field",
    "on a street": "street|road|sidewalk",
    "in a red shirt": "red",
    "jumping": "jumping|jumps|leaps",
    "running": "running|runs",
    "in the woods": "woods|forest|trees",
    "at night": "night|dark",
}


def copies_of(photo: Image.Image) -> dict[str, Image.Image]:
    """Altered copies of a photo by what was done."""
    width, height = photo.size

    def cropped(share: float) -> Image.Image:
        left, top, right, bottom = (round(part * s) for part in (share, 1 - share) for s in (width, height))
        return photo.crop((left, top, right, bottom))

    light = photo.point(lambda value: min(255, value * 6 // 5))
    half = photo.resize((width // 2, height // 2))
    return {"jpeg30": photo, "half": half, "light": light, "crop2": cropped(0.02), "crop4": cropped(0.04)}


def main() -> None:
    captions, images, work = map(Path, sys.argv[1:4])
    described = {image["filename"]: image for image in json.loads(captions.read_text())["images"]}
    names = sorted(name for name in described if (images / name).is_file() and described[name]["split"] != "train")
    for name in names:
        with Image.open(images / name) as photo:
            kinds = {"whole": photo.convert("RGB")}
        if name in random.Random(SEED).sample(names, COPIED):
            kinds |= copies_of(kinds["whole"])
        for kind, copy in kinds.items():
            (work / "photos" / kind).mkdir(parents=True, exist_ok=True)
            copy.save(work / "photos" / kind / name, quality=30 if kind == "jpeg30" else 90)
    update_index(work / "photos", work / "idx", find_model())
    with Index(work / "idx") as index:
        ids = [photo.id for photo in index.latest(99_999)]
        vectors = np.stack([index.vector(name) for name in ids])
        small = np.stack([small_picture(index.thumbnail(name)) for name in ids])
        settings = index.encoder.encode_captions(list(SETTINGS))
    same = (vectors @ vectors.T >= LEAST_COSINE) & (small @ small.T >= LEAST_CORRELATION)
    place = {name: number for number, name in enumerate(ids)}
    whole = np.array([place[f"whole/{name}"] for name in names])
    print(
        "different photos:", int(np.triu(same[np.ix_(whole, whole)], 1).sum()), "of", len(names) * (len(names) - 1) // 2
    )
    for kind in ("jpeg30", "half", "light", "crop2", "crop4"):
        pairs = [same[place[name], place[f"whole/{name.partition('/')[2]}"]] for name in ids if name.startswith(kind)]
        print(f"{kind}: {sum(pairs)} of {len(pairs)}")
    told = [[set(re.findall("[a-z]+", one["raw"].lower())) for one in described[name]["sentences"]] for name in names]
    mix(vectors[whole], settings, told)


def mix(vectors: FloatArray, settings: FloatArray, told: list[list[set[str]]]) -> None:
    """Print the share of the best hits that show both, for several weights of the words."""
    counts = {
        words: np.array([sum(bool(set(words.split("|")) & one) for one in five) for five in told])
        for words in (*THINGS, *SETTINGS.values())
    }
    for weight in np.arange(0, 1.01, 0.1):
        shares = []
        for thing in THINGS:
            for words, vector in zip(SETTINGS.values(), settings, strict=True):
                right = (counts[thing] >= 2) & (counts[words] >= 2)
                for query in (
                    np.flatnonzero((counts[thing] >= 2) & (counts[words] == 0))[:40] if right.sum() >= 8 else ()
                ):
                    scores = vectors @ ((1 - weight) * vectors[query] + weight * vector)
                    scores[query] = -np.inf
                    shares.append(right[np.argsort(-scores)[:FIRST]].mean())
        print(f"words {weight:.1f}: {np.mean(shares):.3f} of the best {FIRST}, {len(shares)} searches")


if __name__ == "__main__":
    main()
