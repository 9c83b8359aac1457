"""Trains the demo: a LLaVA of under 2 million parameters that answers questions about shapes.

    python demo/train.py                                       # half an hour on one CPU core
    python demo/train.py --steps-scale 0.01 --out /tmp/demo    # a smoke run, which learns nothing

Makes, under `--out` (default: this folder), `model/`, which the notebooks load exactly as they load
LLaVA-1.5-7B, and `scenes/`, images that are not in the training data, with annotations in COCO's
format. Prints how often the saved model is right on 1,000 fresh scenes and what a logit lens sees
in it.

The model is LLaVA-1.5's architecture, trained from random weights on pictures that this file draws
and on the questions that `lens_data` asks. It is not a small version of LLaVA-1.5-7B: it knows a
few dozen words, six shapes and seven colours. Trained end to end it stayed at chance, so it learns
in three stages:

1. The vision tower alone, through a throw-away head that names each patch's colour and shape and
   its object's box.
2. With the vision tower frozen, the projector and the language tower on questions.
3. The same, with most questions about relations, which are learned last, and with a small loss on
   patch words: the *last* layer's output at an image patch is to name the colour and the shape of
   the object there, or `background`. No other layer is trained for that.
"""

import argparse
import json
import math
import random
import sys
import time
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn.functional import cross_entropy, smooth_l1_loss
from tqdm import tqdm
from transformers import AutoProcessor, LlavaForConditionalGeneration

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from tiny_llava import make_llava  # noqa: E402

from llava_lens.analysis.stats import auroc, stays_from  # noqa: E402
from llava_lens.data.annotations import annotate  # noqa: E402
from llava_lens.data.crop import objects_in_crop
from llava_lens.data.images import find_images, open_image
from llava_lens.data.prompts import make_prompts
from llava_lens.kinds import CHAT, question_of

IMAGE_SIZE, PATCH_SIZE = 84, 14
GRID = IMAGE_SIZE // PATCH_SIZE
VISION = dict(
    hidden_size=96,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    projection_dim=96,
)
TEXT = dict(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=256,
    initializer_range=0.08,
    tie_word_embeddings=True,
)
LANGUAGE_STAGES = {  # `others`, `relations`: questions per scene
    "2 language": dict(steps=1000, lr=1.5e-3, others=5, relations=1, patch_weight=0),
    "3 language": dict(steps=1500, lr=1e-3, others=2, relations=4, patch_weight=0.1),
}
KINDS = ["object", "presence", "colour", "relation", "description"]
WORDS = KINDS[:4]  # the kinds that are answered in a word

# ------------------------------------------------------------------------------------------------
# Scenes
# ------------------------------------------------------------------------------------------------

SCENE_SIZE = 2 * IMAGE_SIZE  # shipped scenes are for people too; the processor halves them
COLOURS = {
    "red": (215, 35, 35),
    "green": (40, 165, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 215, 40),
    "purple": (150, 50, 175),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}


def unit_outline(points) -> np.ndarray:
    """The points stretched so that their bounding box is the unit square.

    A shape's box is then its annotation.
    """
    points = np.array(points)
    return (points - points.min(0)) / (points.max(0) - points.min(0))


TURN = np.linspace(0, 2 * np.pi, 60, endpoint=False)
SHAPES = {
    "circle": unit_outline(np.stack([np.cos(TURN), np.sin(TURN)], 1)),
    "square": unit_outline([(0, 0), (1, 0), (1, 1), (0, 1)]),
    "triangle": unit_outline([(1, 0), (2, 2), (0, 2)]),
    "star": unit_outline(
        [
            ((1, 0.42)[i % 2] * np.sin(i * np.pi / 5), -(1, 0.42)[i % 2] * np.cos(i * np.pi / 5))
            for i in range(10)
        ]
    ),
    "cross": unit_outline(
        [
            (1, 0),
            (2, 0),
            (2, 1),
            (3, 1),
            (3, 2),
            (2, 2),
            (2, 3),
            (1, 3),
            (1, 2),
            (0, 2),
            (0, 1),
            (1, 1),
        ]
    ),
    "heart": unit_outline(
        np.stack(
            [
                16 * np.sin(TURN) ** 3,
                -(
                    13 * np.cos(TURN)
                    - 5 * np.cos(2 * TURN)
                    - 2 * np.cos(3 * TURN)
                    - np.cos(4 * TURN)
                ),
            ],
            1,
        )
    ),
}
CATEGORIES = sorted(SHAPES)


def place_boxes(rng: random.Random, count: int, gap: int = 6) -> list[list[int]]:
    """Square boxes of varied sizes that stay clear of each other."""
    boxes = []
    while len(boxes) < count:
        side = round(36 * (92 / 36) ** rng.random())
        x, y = rng.randint(2, SCENE_SIZE - side - 2), rng.randint(2, SCENE_SIZE - side - 2)
        if all(
            x + side + gap <= bx or bx + bw + gap <= x or y + side + gap <= by or by + bh + gap <= y
            for bx, by, bw, bh in boxes
        ):
            boxes.append([x, y, side, side])
        elif rng.random() < 0.05:  # perhaps no room is left
            boxes = []
    return boxes


def make_scene(rng: random.Random) -> tuple[Image.Image, list[dict]]:
    """A picture of two or three shapes, no two of the same shape or colour, and its objects as
    `annotate` gives them."""
    boxes = place_boxes(rng, rng.choice([2, 3]))
    shapes, colours = rng.sample(CATEGORIES, len(boxes)), rng.sample(list(COLOURS), len(boxes))
    big = Image.new("RGB", (2 * SCENE_SIZE, 2 * SCENE_SIZE), (rng.randint(110, 145),) * 3)
    draw = ImageDraw.Draw(big)
    for (x, y, w, h), shape, colour in zip(boxes, shapes, colours, strict=True):
        rgb = tuple(max(0, min(255, value + rng.randint(-15, 15))) for value in COLOURS[colour])
        draw.polygon([(2 * (x + w * u), 2 * (y + h * v)) for u, v in SHAPES[shape]], fill=rgb)
    objects = [
        {"category": s, "box": b, "crowd": False, "color": c}
        for s, b, c in zip(shapes, boxes, colours, strict=True)
    ]
    return big.reduce(2), objects  # drawn at twice the size: smooth edges


# Not `lens_grounding.patches_of`, which asks for half of a patch: centres are what this model was
# trained on, and they give a patch at most one object.
def patches_centred_in(box) -> np.ndarray:
    """Which patches (row-major) have their centre in the box."""
    centres = (np.arange(GRID) + 0.5) * PATCH_SIZE
    x, y, w, h = box
    return np.outer((y < centres) & (centres < y + h), (x < centres) & (centres < x + w)).ravel()


def patch_labels(objects: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per patch the index of the object's colour, the index of its shape (background: one past the
    last) and its box in shares of the crop."""
    colour, shape = np.full(GRID**2, len(COLOURS)), np.full(GRID**2, len(CATEGORIES))
    box = np.zeros((GRID**2, 4), np.float32)
    for o in objects:
        inside = patches_centred_in(o["box"])
        colour[inside], shape[inside] = (
            list(COLOURS).index(o["color"]),
            CATEGORIES.index(o["category"]),
        )
        box[inside] = np.array(o["box"]) / IMAGE_SIZE
    return colour, shape, box


def draw_scenes(count: int, seed: int, image_processor, title: str) -> dict:
    """`count` scenes as the model gets them: pixels before normalisation (bytes, to save memory),
    objects in the crop, patch labels."""
    rng = random.Random(seed)
    pixels, objects, labels = (
        torch.empty(count, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8),
        [],
        [],
    )
    for i in tqdm(range(count), desc=title, mininterval=5):
        image, found = make_scene(rng)
        pixels[i] = image_processor(
            image, do_rescale=False, do_normalize=False, return_tensors="pt"
        ).pixel_values[0]
        objects.append(objects_in_crop(found, image.size, image_processor))
        labels.append(patch_labels(objects[-1]))
    colour, shape, box = (
        torch.from_numpy(np.stack(of_scenes)) for of_scenes in zip(*labels, strict=True)
    )
    return {"pixels": pixels, "objects": objects, "colour": colour, "shape": shape, "box": box}


def ship_scenes(folder: Path, count: int, seed: int, image_processor) -> None:
    """Save `count` scenes about which every kind of question can be asked, with annotations in
    COCO's format."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    while len(images) < count:
        image, objects = make_scene(rng)
        seen = objects_in_crop(objects, image.size, image_processor)
        if {prompt["kind"] for prompt in ask(seen, seed=0)} != set(KINDS):
            continue
        images.append(
            {
                "id": len(images),
                "file_name": f"scene_{len(images):02}.png",
                "width": SCENE_SIZE,
                "height": SCENE_SIZE,
            }
        )
        image.save(folder / images[-1]["file_name"])
        annotations += [
            {
                "id": len(annotations) + i,
                "image_id": images[-1]["id"],
                "category_id": CATEGORIES.index(o["category"]) + 1,
                "bbox": o["box"],
                "area": o["box"][2] * o["box"][3],
                "iscrowd": 0,
                "color": o["color"],
            }
            for i, o in enumerate(objects)
        ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)]
    text = json.dumps(
        {"images": images, "annotations": annotations, "categories": categories}, indent=1
    )
    (folder / "annotations.json").write_text(text + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------
# Questions and answers
# ------------------------------------------------------------------------------------------------


def describe(objects: list[dict]) -> str:
    """`a red circle, a blue star and a white heart`: the largest first."""
    names = [f"a {o['color']} {o['category']}" for o in sorted(objects, key=lambda o: -o["box"][2])]
    return ", ".join(names[:-1]) + " and " + names[-1]


def absent_from(objects: list[dict]) -> list[str]:
    """The categories that a scene does not have."""
    present = {item["category"] for item in objects}
    return [name for name in CATEGORIES if name not in present]


def ask(objects: list[dict], seed) -> list[dict]:
    """The prompts that `Make_Analyse` would ask about this scene; `describe` adds the one truth
    that annotations don't hold."""
    prompts = make_prompts(objects, absent_from(objects), seed=seed)
    return [{**p, "truth": describe(objects)} if p["kind"] == "description" else p for p in prompts]


def make_lesson(objects: list[dict], rng: random.Random, others: int, relations: int) -> list[dict]:
    """Questions to learn from: as many about relations and of the other kinds as given, if the
    scene has them."""
    prompts = [p for p in ask(objects, seed=rng.random()) if p["kind"] != "relation"]
    more = make_prompts(objects, absent_from(objects), seed=rng.random(), per_kind=relations)
    return rng.sample(prompts, min(others, len(prompts))) + [
        p for p in more if p["kind"] == "relation"
    ]


def make_corpus() -> list[str]:
    """Every word that the model reads or writes."""
    questions = [question_of("object"), question_of("description")]
    for a in CATEGORIES:
        questions += [question_of("presence", category=a), question_of("colour", category=a)] + [
            question_of("relation", a=a, b=b) for b in CATEGORIES if b != a
        ]
    answers = [
        "yes no left right above below a and , background",
        " ".join(CATEGORIES),
        " ".join(COLOURS),
    ]
    return [
        CHAT.format(question=question).replace("<image>", "") for question in questions
    ] + answers


class Reader:
    """Turns prompts into token ids, just as inference sees them."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        ids = tokenizer(CHAT.format(question="")).input_ids
        self.before_image = ids[: ids.index(tokenizer.convert_tokens_to_ids("<image>"))]
        self.encode = lru_cache(maxsize=None)(self.encode)  # there are few different questions

    def word(self, word: str) -> int:
        return self.tokenizer.convert_tokens_to_ids("▁" + word)

    def encode(self, question: str, answer: str) -> tuple[list[int], int]:
        """Ids after the image to the end of the answer, and how many of them are the prompt's."""
        prompt = CHAT.format(question=question)
        prompt_ids = self.tokenizer(prompt).input_ids
        ids = self.tokenizer(f"{prompt} {answer}</s>").input_ids
        assert ids[: len(prompt_ids)] == prompt_ids
        after_image = len(self.before_image) + 1
        return ids[after_image:], len(prompt_ids) - after_image

    def pack(self, scenes: list[list[dict]]) -> dict[str, torch.Tensor]:
        """Several questions behind one image: each counts its positions as if it alone followed the
        image, and sees no other.

        `targets` lists `(row, position, next token, kind, question, first?)` of the answer tokens,
        `weights` their weights in the loss.
        """
        start = len(self.before_image) + GRID**2
        rows, targets, target_weights, question = [], [], [], 0
        for row, prompts in enumerate(scenes):
            ids, positions, segments = [], [], []
            for segment, prompt in enumerate(prompts, 1):
                new, prompt_length = self.encode(prompt["question"], prompt["truth"])
                kind = prompt["kind"]
                for i in range(prompt_length, len(new)):
                    first = i == prompt_length
                    targets.append(
                        (row, start + len(ids) + i - 1, new[i], KINDS.index(kind), question, first)
                    )
                    # The word is what counts; a description has many words.
                    target_weights.append(0.15 if kind == "description" else 1 if first else 0.1)
                ids += new
                positions += range(start, start + len(new))
                segments += [segment] * len(new)
                question += 1
            rows.append((ids, positions, segments))
        length = max(len(ids) for ids, _, _ in rows)

        def pad(column, value):
            return torch.tensor(
                [row[column] + [value] * (length - len(row[column])) for row in rows]
            )

        prefix = torch.arange(start).expand(len(rows), -1)
        segments = torch.cat([torch.zeros_like(prefix), pad(2, -1)], 1)
        allowed = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
        return {
            "ids": pad(0, self.tokenizer.pad_token_id),
            "position_ids": torch.cat([prefix, pad(1, 0)], 1),
            "attention_mask": (allowed & torch.ones_like(allowed[0]).tril()).unsqueeze(1),
            "targets": torch.tensor(targets),
            "weights": torch.tensor(target_weights),
        }


# ------------------------------------------------------------------------------------------------
# Training
# ------------------------------------------------------------------------------------------------


def image_features(model, pixels: torch.Tensor, image_processor) -> torch.Tensor:
    """What the vision tower hands to the projector."""
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (image_processor.image_mean, image_processor.image_std)
    )
    tower = model.model.vision_tower
    hidden = tower((pixels / 255 - mean) / std, output_hidden_states=True).hidden_states
    return hidden[model.config.vision_feature_layer][:, 1:]


def read(
    model, reader: Reader, features: torch.Tensor, packed: dict
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedding output and final normed state of the language tower at every position."""
    embed = model.get_input_embeddings()
    before = embed(torch.tensor(reader.before_image)).expand(len(features), -1, -1)
    embedded = torch.cat(
        [before, model.model.multi_modal_projector(features), embed(packed["ids"])], 1
    )
    output = model.model.language_model(
        inputs_embeds=embedded,
        attention_mask=packed["attention_mask"],
        position_ids=packed["position_ids"],
        use_cache=False,
    )
    return embedded, output.last_hidden_state


def optimise(parameters, steps: int, lr: float, loss_of_step, title: str) -> None:
    """AdamW with a short warm-up and a cosine to zero."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, min(100, steps // 10))

    def shape(step):
        return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    average = {}
    with tqdm(range(steps), desc=title, mininterval=5) as bar:
        for step in bar:
            loss, shown = loss_of_step(step)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            for name, value in shown.items():
                average[name] = 0.98 * average.get(name, value) + 0.02 * value
            bar.set_postfix(
                {name: f"{value:.3f}" for name, value in average.items()}, refresh=False
            )


def train_vision(
    model, data: dict, image_processor, steps: int, batch: int = 64, lr: float = 2e-3
) -> None:
    """Stage 1. The head is thrown away: it only makes the features hold what the language tower
    will be asked about."""
    sizes = [len(COLOURS) + 1, len(CATEGORIES) + 1, 4]
    head = torch.nn.Linear(VISION["hidden_size"], sum(sizes))
    rng = torch.Generator().manual_seed(1)

    def loss_of_step(step):
        chosen = torch.randint(len(data["pixels"]), (batch,), generator=rng)
        features = image_features(model, data["pixels"][chosen], image_processor)
        colour, shape, box = head(features).split(sizes, -1)
        true_colour, true_shape, true_box = (
            data[name][chosen] for name in ("colour", "shape", "box")
        )
        covered = true_shape < len(CATEGORIES)
        loss = cross_entropy(colour.flatten(0, 1), true_colour.flatten()) + cross_entropy(
            shape.flatten(0, 1), true_shape.flatten()
        )
        loss = loss + 10 * smooth_l1_loss(box[covered], true_box[covered], beta=0.05)

        def right(guess, truth):
            return (guess.argmax(-1) == truth)[covered].float().mean().item()

        return loss, {
            "colour": right(colour, true_colour),
            "shape": right(shape, true_shape),
            "box_error": (box - true_box)[covered].abs().mean().item() * IMAGE_SIZE,
        }

    optimise(
        [*model.model.vision_tower.parameters(), *head.parameters()],
        steps,
        lr,
        loss_of_step,
        "1 vision",
    )


def patch_loss(
    model, reader: Reader, states: torch.Tensor, colour: torch.Tensor, shape: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of the model's output at the image positions to the words of what is there."""
    colour_ids = torch.tensor([reader.word(word) for word in [*COLOURS, "background"]])
    shape_ids = torch.tensor([reader.word(word) for word in [*CATEGORIES, "background"]])
    start = len(reader.before_image)
    logits = model.lm_head(states[:, start : start + GRID**2]).flatten(0, 1)
    return (
        cross_entropy(logits, colour_ids[colour].flatten())
        + cross_entropy(logits, shape_ids[shape].flatten())
    ) / 2


def train_language(
    model, reader: Reader, data: dict, features: torch.Tensor, title: str, steps_scale: float
) -> None:
    """One of LANGUAGE_STAGES, on features that were computed once: the vision tower is frozen."""
    rng, stage, batch = random.Random(title), LANGUAGE_STAGES[title], 16

    def loss_of_step(step):
        chosen = rng.sample(range(len(features)), batch)
        lessons = [
            make_lesson(data["objects"][i], rng, stage["others"], stage["relations"])
            for i in chosen
        ]
        packed = reader.pack(lessons)
        _, states = read(model, reader, features[chosen].float(), packed)
        row, position, token, kind, _, first = packed["targets"].T
        logits, weights = model.lm_head(states[row, position]), packed["weights"]
        loss = (weights * cross_entropy(logits, token, reduction="none")).sum() / weights.sum()
        if stage["patch_weight"]:
            loss = loss + stage["patch_weight"] * patch_loss(
                model, reader, states, data["colour"][chosen], data["shape"][chosen]
            )
        right = (logits.argmax(-1) == token).float()
        of_kind = {name: right[(kind == i) & (first == 1)] for i, name in enumerate(WORDS)}
        return loss, {
            "loss": loss.item(),
            **{name: values.mean().item() for name, values in of_kind.items() if len(values)},
        }

    parameters = [
        *model.model.multi_modal_projector.parameters(),
        *model.model.language_model.parameters(),
    ]
    optimise(parameters, scaled(stage["steps"], steps_scale), stage["lr"], loss_of_step, title)


def scale_output_projections(model) -> None:
    """Each layer adds to the residual stream twice: keep its size from growing with depth (as
    GPT-2 does)."""
    for layer in model.model.language_model.layers:
        for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
            projection.weight.data *= (2 * TEXT["num_hidden_layers"]) ** -0.5


# ------------------------------------------------------------------------------------------------
# What it learned
# ------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(
    model, reader: Reader, data: dict, image_processor, batch: int = 50
) -> tuple[dict, dict]:
    """Share of right answers per kind, and per layer (0: the embeddings) what a logit lens sees, on
    all scenes of `data`.

    One pass per batch on prompts and true answers: where every token of an answer is the model's
    first choice after the ones before it, greedy decoding gives that answer, and only there.
    """
    outputs = []  # of the decoder layers; the last state that `read` returns is normed already

    def keep(module, args, output):
        outputs.append(output if torch.is_tensor(output) else output[0])

    language = model.model.language_model
    hooks = [layer.register_forward_hook(keep) for layer in language.layers]
    answers, per_layer = {kind: [] for kind in KINDS}, defaultdict(list)
    numbers = torch.arange(len(data["objects"])).split(batch)
    for chosen in tqdm(numbers, desc="held-out scenes", mininterval=5):
        scenes = [data["objects"][i] for i in chosen]
        packed = reader.pack(
            [ask(objects, seed=int(i)) for objects, i in zip(scenes, chosen, strict=True)]
        )
        outputs.clear()
        features = image_features(model, data["pixels"][chosen], image_processor)
        embedded, final = read(model, reader, features, packed)
        residuals = [embedded, *outputs]
        assert torch.equal(language.norm(residuals[-1]), final)
        for kind, right in right_answers(model, final, packed["targets"]):
            answers[kind].append(right)
        start = len(reader.before_image)
        patches = [resid[:, start : start + GRID**2] for resid in residuals]
        for name, values in [
            *top1_answers(model, residuals, packed["targets"]),
            *own_words(model, reader, patches, scenes),
        ]:
            per_layer[name].append(values)
    for hook in hooks:
        hook.remove()
    return answers, {name: np.concatenate(values, 1) for name, values in per_layer.items()}


def lens(model, resid: torch.Tensor) -> torch.Tensor:
    """Logits of a residual stream that is not normed."""
    return model.lm_head(model.model.language_model.norm(resid))


def right_answers(model, final: torch.Tensor, targets: torch.Tensor):
    """`(kind, whether every token is the first choice)` of each answer."""
    row, position, token, kind, question, _ = targets.T
    right = model.lm_head(final[row, position]).argmax(-1) == token
    for number in range(int(question[-1]) + 1):
        of_question = question == number
        yield KINDS[kind[of_question][0]], right[of_question].all().item()


def top1_answers(model, residuals: list[torch.Tensor], targets: torch.Tensor):
    """`(kind, whether the first token is the lens's top-1 [layer, answer])` of the WORDS."""
    row, position, token, kind, _, first = targets.T
    top1 = torch.stack([lens(model, r[row, position]).argmax(-1) == token for r in residuals])
    for i, name in enumerate(WORDS):
        yield name, top1[:, (first == 1) & (kind == i)].numpy()


def own_words(model, reader: Reader, patches: list[torch.Tensor], scenes: list[list[dict]]):
    """`AUROC shape` and `AUROC colour` `[layer, object]` of the probability of an object's own word
    in its patches against all others, and `best shape` and `best colour` `[layer, patch]`: whether
    the word is the most probable one of its kind there. `patches` are residuals by layer."""
    owner = [i for i, objects in enumerate(scenes) for _ in objects]
    objects = [o for objects in scenes for o in objects]
    inside = np.stack([patches_centred_in(o["box"]) for o in objects])
    probabilities = [lens(model, resid).softmax(-1)[owner] for resid in patches]
    for name, key, labels in (("shape", "category", CATEGORIES), ("colour", "color", COLOURS)):
        ids = [reader.word(word) for word in labels]
        own = np.array([list(labels).index(o[key]) for o in objects])
        # [layer, object, patch, word]
        words = np.stack([p[:, :, ids].numpy() for p in probabilities])
        scores = np.take_along_axis(words, own[None, :, None, None], -1)[..., 0]
        yield (
            f"AUROC {name}",
            np.stack([auroc(scores[:, i], inside[i]) for i in range(len(objects))], 1),
        )
        yield f"best {name}", (words.argmax(-1) == own[:, None])[:, inside]


def print_report(answers: dict, per_layer: dict) -> None:
    """What `measure` found."""

    def print_row(title, values, form=".1f"):
        print(f"  {title:32}" + "".join(f"{value:7{form}}" for value in values))

    print("\nHeld-out accuracy of the saved model (greedy answer, all of its words right)")
    for kind, right in answers.items():
        print(f"  {kind:12} {100 * np.mean(right):5.1f} %  of {len(right)} questions")
    layers = range(len(per_layer["object"]))
    print("\nPer layer (0: embeddings)" + " " * 9 + "".join(f"{layer:7}" for layer in layers))
    print("The true answer is top-1 at the last prompt position, %")
    for kind in WORDS:
        print_row(kind, 100 * per_layer[kind].mean(1))
    print("... and stays so up to the last layer (has settled), %")
    for kind in WORDS:
        settling = stays_from(np.asarray(per_layer[kind], bool))
        print_row(kind, [100 * np.mean(settling <= layer) for layer in layers])
    print(
        "AUROC of P(an object's own word): patches in its box against all others, mean of objects"
    )
    for name in ("shape", "colour"):
        print_row(f"{name} word", per_layer[f"AUROC {name}"].mean(1), ".2f")
    print("Patches inside a box whose best word of the kind is the object's own, %")
    for name, words in (("shape", CATEGORIES), ("colour", COLOURS)):
        title = f"{name} word (chance {100 / len(words):.0f})"
        print_row(title, 100 * per_layer[f"best {name}"].mean(1))


@torch.no_grad()
def answer_shipped(folder: Path, dtype: torch.dtype) -> float:
    """Share of right short answers on the shipped scenes, with the saved model and processor as a
    user loads them."""
    model = LlavaForConditionalGeneration.from_pretrained(folder / "model", dtype=dtype)
    processor = AutoProcessor.from_pretrained(folder / "model", backend="pil")
    right = []
    scenes = folder / "scenes"
    for file, objects in annotate(scenes, find_images(scenes)).objects.items():
        image = open_image(folder / "scenes" / file)
        seen = objects_in_crop(objects, image.size, processor.image_processor)
        for prompt in ask(seen, seed=file):
            if prompt["kind"] == "description":
                continue
            inputs = processor(
                images=image, text=CHAT.format(question=prompt["question"]), return_tensors="pt"
            ).to(dtype)
            output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            answer = processor.tokenizer.decode(
                output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            right.append(answer.strip() == prompt["truth"])
    return float(np.mean(right))


def scaled(count: int, scale: float) -> int:
    return max(1, round(count * scale))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE, help="where `model/` and `scenes/` go")
    parser.add_argument(
        "--steps-scale",
        type=float,
        default=1.0,
        help="scales training data and steps, for a smoke run",
    )
    args = parser.parse_args()
    scale = args.steps_scale
    began = time.time()
    torch.set_num_threads(1)  # a second thread gains nothing at this size
    torch.manual_seed(0)

    model = make_llava(args.out / "model", make_corpus(), IMAGE_SIZE, PATCH_SIZE, VISION, TEXT)
    scale_output_projections(model)
    processor = AutoProcessor.from_pretrained(args.out / "model", backend="pil")
    reader, image_processor = Reader(processor.tokenizer), processor.image_processor
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{n_parameters / 1e6:.2f} million parameters, {len(processor.tokenizer)} tokens")
    ship_scenes(args.out / "scenes", 24, seed=2, image_processor=image_processor)

    data = draw_scenes(max(100, scaled(24_000, scale)), 0, image_processor, "training scenes")
    train_vision(model, data, image_processor, scaled(3000, scale))
    with torch.no_grad():
        features = torch.cat(
            [
                image_features(model, pixels, image_processor).half()
                for pixels in data["pixels"].split(250)
            ]
        )
    for title in LANGUAGE_STAGES:
        train_language(model, reader, data, features, title, scale)
    model.half().save_pretrained(args.out / "model")

    model = LlavaForConditionalGeneration.from_pretrained(args.out / "model", dtype=torch.float32)
    fresh = draw_scenes(1000, 1, image_processor, "fresh scenes")
    print_report(*measure(model, reader, fresh, image_processor))
    for dtype in (torch.float32, torch.float16):
        right = 100 * answer_shipped(args.out, dtype)
        print(f"Shipped scenes, {dtype}: {right:.1f} % of short answers are right")
    print(f"{(time.time() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
