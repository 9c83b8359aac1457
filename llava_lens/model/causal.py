"""What an answer takes from the image: attention knockout, and the route by activation patching."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from llava_lens.model.lens import lens_logits, raise_not_finite
from llava_lens.model.read import text_of
from llava_lens.model.run import PIECE, Row, Texts, as_cache, crop_to, in_groups, run_rows

WORD_TOKENS = 5  # so many tokens of an answer tell its first word


def knockout_windows(n_layers: int) -> list[list[int]]:
    """The windows in which attention is cut, `[first, last]` of their blocks, counted from 1.

    Up to six of 9 in 32 of the blocks each (rounded up, at least two), evenly spaced; and at the
    end one of all blocks.
    """
    width = min(n_layers, max(2, math.ceil(9 / 32 * n_layers)))
    firsts = np.unique(np.linspace(1, n_layers - width + 1, 6).round().astype(int)).tolist()
    moved = [[first, first + width - 1] for first in firsts]
    return moved + [[1, n_layers]] * (width < n_layers)


def route_layers(n_layers: int) -> list[int]:
    """The layers that are patched: all of up to 12 blocks, else about 17 evenly spaced ones with
    both ends."""
    step = 1 if n_layers <= 12 else math.ceil(n_layers / 17)
    n_patched = math.ceil(n_layers / step) + 1
    return np.linspace(0, n_layers, n_patched).round().astype(int).tolist()


@dataclass
class Run:
    """A text that ran after a prefix."""

    states: tuple[torch.Tensor, ...]  # [pos, d_model] per layer
    n_prefix: int
    places: list[int]  # where its tokens are in the cache; the prefix is before all texts
    said: list[int]  # the tokens that the model said then

    def whole(self, states, layer: int, hidden: list[int] = (), until: int = 0) -> Row:
        """All positions from `layer` on, with `states` there."""
        return Row(states, layer, [*range(self.n_prefix)], hidden, until)

    def last(self, states, layer: int, question: list[int], hidden: list[int] = ()) -> Row:
        """The last position alone from `layer` on, with the last of `states` there. Of the text
        before it, the cache has `question`."""
        sees = [*range(self.n_prefix), *question]
        return Row(states[-1:], layer, sees, hidden, until=len(self.states) - 1)


def run_texts(side_by_side: Texts, texts: dict[int, torch.Tensor]) -> dict[int, Run]:
    """The Run of each of `texts` `[pos]` (by number), with the first token that the model says."""
    _, residuals, next_ids = next(side_by_side.answer(texts, max_new_tokens=1))
    lengths, n_prefix = [*map(len, texts.values())], side_by_side.n_prefix
    by_text = zip(*(layer.split(lengths) for layer in residuals), strict=True)
    return {
        number: Run(states, n_prefix, [*side_by_side.places[number]], [next_ids[number]])
        for number, states in zip(texts, by_text, strict=True)
    }


def logits_of(bridge, cache, rows: dict[tuple, Row]) -> dict[tuple, torch.Tensor]:
    """The logits `[d_vocab]` in float32 at the last position of each row; `cache` is left as it
    was. Rows run side by side (`in_groups`), in the order of their first layer."""
    n_cached, logits = cache.get_seq_length(), {}
    keys = sorted(rows, key=lambda key: rows[key].layer)
    for group in in_groups([rows[key].states for key in keys]):
        batch = {keys[number]: rows[keys[number]] for number in group}
        residuals = run_rows(bridge, cache, [*batch.values()])
        crop_to(cache, n_cached)
        ends = np.cumsum([len(states) for states in group.values()]) - 1
        last = _finite_logits(bridge, residuals[-1][ends])  # [row, d_vocab]
        logits |= zip(batch, last, strict=True)
    return logits


def _finite_logits(bridge, states) -> torch.Tensor:
    logits = lens_logits(bridge, states)
    if not logits.isfinite().all():
        raise_not_finite("the logits with attention cut or states patched")
    return logits


def cut_rows(own: Run, run: dict, patches: dict) -> dict[tuple, Row]:
    """The rows of KNOCKOUT by `(cut, window)`, -1 for all blocks; `patches_to_cut` gives `patches`.

    Source: attention knockout, Geva et al., arXiv 2304.14767.
    """
    rows, first_patch = {}, own.n_prefix - math.prod(run["grid"])  # patches end the prefix
    image = [*range(own.n_prefix - run["n_image_tokens"], own.n_prefix)]
    for cut, found in patches.items():
        for window, (first, last) in enumerate(run["knockout_windows"]):
            hidden = [first_patch + patch for patch in found]
            # Below the window nothing is disturbed: the row begins with the own run's states.
            rows[cut, window] = own.whole(own.states[first - 1], first - 1, hidden, last)
    embedded, n_layers = own.states[0], len(own.states) - 1
    question = own.places[:-1]
    rows["image", -1] = own.whole(embedded, 0, image, n_layers)
    rows["image_last", -1] = own.last(embedded, 0, question, image)
    rows["question_last", -1] = own.last(embedded, 0, question, question)
    return rows


def read_causal(  # noqa: PLR0913 (an image, other images, and what is asked)
    bridge, prefix: list, others: Callable, prompts: list[dict], patches: list[dict], run: dict
) -> list[dict]:
    """`knockout` and `route` (KNOCKOUT, ROUTE) of each prompt of a record.

    `prefix` is the image's (`keep_prefix`). `others()` gives what `counterfactuals` takes.
    `patches_to_cut` gives `patches` for each prompt. `run` (RUN) names windows and layers. Both are
    empty for a prompt of more than PIECE tokens, the route also where no other image gives another
    answer. Raises FloatingPointError.
    """
    windows, layers = run["knockout_windows"], run["route_layers"]
    read = [{"knockout": {}, "route": {}} for _ in prompts]
    groups = in_groups([*map(text_of, prompts)]) if windows or layers else []
    with torch.inference_mode():
        for texts in groups:
            if sum(map(len, texts.values())) > PIECE:
                continue
            cache = as_cache(prefix)
            runs = run_texts(Texts(bridge, cache), texts)
            answers = {
                number: prompts[number]["answer_ids"][prompts[number]["word_at"] :][:WORD_TOKENS]
                for number in texts
            }
            cuts = {}
            for number, own in runs.items() if windows else ():
                rows = cut_rows(own, run, patches[number])
                cuts |= {(number, *key): row for key, row in rows.items()}
            for (number, cut, window), logits in logits_of(bridge, cache, cuts).items():
                prob = float(logits.softmax(-1)[answers[number][0]])
                if window < 0:
                    read[number]["knockout"][cut] = prob
                else:
                    none = np.zeros(len(windows), np.float32)
                    read[number]["knockout"].setdefault(cut, none)[window] = prob
            if layers:
                found = counterfactuals(bridge, texts, answers, others())
                for number, route in read_routes(bridge, cache, runs, answers, found, layers):
                    read[number]["route"] = route
    return read


def counterfactuals(bridge, texts: dict, answers: dict, others: Iterator) -> Iterator[tuple]:
    """`(name, cache, runs)` of images, nearest first; `runs` are of the texts to which the model
    first answers otherwise there: with another word, and another token to begin it.

    `answers` are the tokens of the own answers. `others` gives `(name, prefix, said)` of images;
    `said` keeps, by a text's tokens, the first token that the model says there.
    """
    words = {number: _word(bridge, ids) for number, ids in answers.items()}
    keys = {number: tuple(ids.tolist()) for number, ids in texts.items()}
    waiting = [number for number in texts if words[number]]
    while waiting and (other := next(others, None)):
        name, prefix, said = other
        asked = [number for number in waiting if said.get(keys[number]) != answers[number][0]]
        if not asked:
            continue
        side_by_side = Texts(bridge, as_cache(prefix))
        runs = run_texts(side_by_side, {number: texts[number] for number in asked})
        said |= {keys[number]: run.said[0] for number, run in runs.items()}
        differ = {number: run for number, run in runs.items() if run.said[0] != answers[number][0]}
        # The whole first word: `▁Y`, `ellow` is not another word than `▁yellow`.
        begun = {
            number: torch.tensor(run.said)
            for number, run in differ.items()
            if run.said[0] not in side_by_side.end_ids
        }
        for _, _, next_ids in side_by_side.answer(begun, WORD_TOKENS - 1):
            for number, next_id in next_ids.items():
                differ[number].said.append(next_id)
        found = {
            number: run
            for number, run in differ.items()
            if _word(bridge, run.said) not in ("", words[number])
        }
        waiting = [number for number in waiting if number not in found]
        if found:
            yield name, side_by_side.cache, found


def _word(bridge, ids) -> str:
    """The first word that tokens say, in lower case, or nothing."""
    word = re.search(r"[^\W_]+", _text(bridge, ids))
    return word[0].lower() if word else ""


def _text(bridge, ids) -> str:
    return bridge.tokenizer.decode(ids, skip_special_tokens=True).strip()


def read_routes(  # noqa: PLR0913 (both runs of a text, and what is asked)
    bridge, cache, runs: dict[int, Run], answers: dict, found: Iterator, layers: list[int]
) -> Iterator[tuple[int, dict]]:
    """`(number, ROUTE)` of the texts that are `found` a counterfactual (`counterfactuals`).

    Activation patching: at one layer, one group of positions gets its states from the run after the
    other image. Kept is the logit of the own answer's first token minus that of the other's.
    Sources: Vig et al., arXiv 2004.12265; Heimersheim and Nanda, 2404.15255.
    """
    routes, rows, logits = {}, {}, {}
    for name, other_cache, others in found:
        image_rows = {}
        for number, other in others.items():
            own = runs[number]
            for layer in layers[1:-1]:  # what the ends give follows from the two runs
                states = torch.cat([other.states[layer][:-1], own.states[layer][-1:]])
                rows[number, "question", layer] = own.whole(states, layer)
                last = own.last(other.states[layer], layer, own.places[:-1])
                rows[number, "last", layer] = last
                # A prefix depends on nothing after it. So the blocks above a layer where all
                # patches are patched see the other prefix, and the text keeps its own states.
                image_rows[number, "image", layer] = own.whole(own.states[layer], layer)
            # The question patched at all layers: the last position sees the other run's question.
            question = _append(cache, other_cache, other.places[:-1])
            rows[number, "mediated", -1] = own.last(own.states[0], 0, question)
            for which, run in ("own", own), ("counterfactual", other):
                logits[number, which, -1] = _finite_logits(bridge, run.states[-1][-1:])[0]
            routes[number] = {
                "other": name,
                "other_answer": _text(bridge, other.said),
                "own_id": int(answers[number][0]),
                "other_id": other.said[0],
            }
        logits |= logits_of(bridge, other_cache, image_rows)
    logits |= logits_of(bridge, cache, rows)
    for number, route in routes.items():
        difference = {
            (group, layer): float(one[route["own_id"]] - one[route["other_id"]])
            for (of, group, layer), one in logits.items()
            if of == number
        }
        for name in ("own", "counterfactual", "mediated"):
            route[name] = difference[name, -1]
        own, other = route["own"], route["counterfactual"]
        # At the ends all that runs above is of the own run, or of the other.
        ends = {"image": (other, own), "question": (own, own), "last": (own, other)}
        for name, (first, last) in ends.items():
            inner = [difference[name, layer] for layer in layers[1:-1]]
            route[name] = np.array([first, *inner, last], np.float32)
        yield number, route


def _append(cache, other_cache, places: list[int]) -> list[int]:
    """Put keys and values of another cache at the end of `cache`; returns where they are."""
    end = cache.get_seq_length()
    for block, layer in enumerate(other_cache.layers):
        cache.update(layer.keys[:, :, places], layer.values[:, :, places], block)
    return [*range(end, end + len(places))]
