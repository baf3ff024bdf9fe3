"""The panels, driven as a browser drives them, on the installed ipywidgets and on Colab's."""

import _thread
import base64
import json
import os
import re
import subprocess
import sys
import threading
import time
from io import BytesIO
from pathlib import Path

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

from blora_nb.errors import ImageError
from blora_nb.evaluation.metrics import scorer_for
from blora_nb.files.images import centre_square
from blora_nb.files.metadata import picture_metadata
from blora_nb.files.paper import paper_white, with_margin
from blora_nb.generation import generate
from blora_nb.lora import BLoRA, applied
from blora_nb.registry import pipeline_lock
from blora_nb.settings import TrainingSettings
from blora_nb.widgets import chooser as chooser_module
from blora_nb.widgets import gallery as gallery_module
from blora_nb.widgets import panel as panels
from blora_nb.widgets.gallery import MARGIN, Gallery, Source, Upload, example_gallery
from blora_nb.widgets.kept import files_of, keep, load_kept
from blora_nb.widgets.markup import png_address
from blora_nb.widgets.panels import AlphaPanel, SeedPanel
from blora_nb.widgets.worker import Cancelled, threads_reach_the_page

COLABS = "7.7.1"


@pytest.fixture(scope="module")
def examples():
    return example_gallery()


@pytest.fixture
def panel(pipe, examples, tmp_path):
    gallery = Gallery(sources=dict(examples.sources))
    return AlphaPanel(
        pipe,
        "star sunset",
        "flower neon",
        gallery=gallery,
        num_inference_steps=3,
        folder=tmp_path / "out",
        training_settings=TrainingSettings.for_pipeline(pipe, max_train_steps=4),
    )


def upload(widget, name, content):
    """What the browser sends when a file was chosen."""
    upload_several(widget, {name: content})


def upload_several(widget, files):
    """What the browser sends when several files were chosen: name to content."""
    contents = [memoryview(content) for content in files.values()]
    about = [{"name": name, "type": "", "size": len(files[name])} for name in files]
    if ipywidgets.__version__.startswith("7"):
        metadata = [known | {"lastModified": 0} for known in about]
        counter = widget._counter + len(files)
        state = {"data": contents, "metadata": metadata, "_counter": counter}
    else:
        value = [
            known | {"last_modified": 0, "content": content}
            for known, content in zip(about, contents)
        ]
        state = {"value": value}
    widget.set_state(state)


def png(picture):
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def pixels(panel):
    """The picture the page shows, read back from its HTML."""
    data = panel.large.value.split("base64,")[1].split('"')[0]
    return Image.open(BytesIO(base64.b64decode(data))).tobytes()


def status(panel):
    return panel.worker.status.value


def all_widgets(widget):
    return [widget, *(w for child in getattr(widget, "children", ()) for w in all_widgets(child))]


def in_background(panel):
    panel.worker.background = True
    return panel


def until(true, seconds=30):
    end = time.time() + seconds
    while not true() and time.time() < end:
        time.sleep(0.01)
    assert true()


def test_generate_draws_what_the_function_draws(panel, pipe, examples):
    panel.choosers["style"].alpha.set_state({"value": 0.8})
    panel.seed.set_state({"value": 7})
    panel.generate.click()
    star, neon = (examples.sources[name].blora for name in ("star sunset", "flower neon"))
    expected = generate(pipe, "A [c] in [s] style", star, neon, 1.0, 0.8, 7, 3, progress=False)[0]
    assert pixels(panel) == panel.picture.tobytes() == expected.tobytes()
    assert panel.errors == []
    # the alt text says how it was made
    assert "seed 7" in panel.large.value
    assert "style: flower neon, alpha +0.80" in panel.large.value
    assert "Done" in status(panel)


def test_a_slow_picture_is_shown_while_it_is_drawn(panel, monkeypatch):
    seen = []
    panel.large.observe(lambda change: seen.append(change["new"]), "value")
    # so that this one is fast on a machine with other work, too
    monkeypatch.setattr(panels, "PREVIEW", 60)
    panel.generate.click()
    assert len(seen) == 1, "a fast one is not"
    seen.clear()
    monkeypatch.setattr(panels, "PREVIEW", 0)
    panel.seed.set_state({"value": 7})
    panel.generate.click()
    assert ["so far, after step" in shown for shown in seen] == [True] * 3 + [False]
    assert pixels(panel) == panel.picture.tobytes()

    def cancelled(*_):
        raise Cancelled

    done = seen[-1]
    monkeypatch.setattr(panel.worker, "step", cancelled)
    panel.seed.set_state({"value": 8})
    panel.generate.click()
    assert "so far" in seen[-2]
    assert panel.large.value == done
    assert "Cancelled" in status(panel)


def test_going_back_is_instant_and_draws_nothing(panel, monkeypatch):
    alpha = panel.choosers["content"].alpha
    panel.generate.click()
    first = pixels(panel)
    alpha.set_state({"value": -0.5})
    assert "press Generate" in status(panel)
    assert pixels(panel) == first
    panel.generate.click()
    second = pixels(panel)
    assert second != first
    monkeypatch.setattr(panels, "generate", lambda *_, **__: pytest.fail("drawn again"))
    alpha.set_state({"value": 1.0})
    assert pixels(panel) == first
    assert "Drawn before" in status(panel)
    alpha.set_state({"value": -0.5})
    panel.generate.click()
    assert pixels(panel) == second
    assert panel.errors == []


def test_an_own_picture_is_uploaded_learned_kept_and_offered_in_other_panels(
    panel, pipe, picture, tmp_path
):
    other = AlphaPanel(pipe, style="cat wood", gallery=panel.gallery)
    chooser = panel.choosers["content"]
    assert chooser.train.disabled, "what is learned already needs no training"
    upload(chooser.upload, "my star.png", png(picture))
    assert chooser.choice.value == "my star"
    assert not chooser.train.disabled
    panel.generate.click()
    assert "Train content" in str(panel.errors[0])
    assert "Train content" in status(panel)
    shown = []
    chooser.thumbnail.observe(lambda change: shown.append(change.new), "value")
    chooser.train.click()
    assert any("what the model has learned of my star so far" in html for html in shown)
    assert "content picture: my star" in chooser.thumbnail.value
    saved = BLoRA.load(tmp_path / "out" / "my_star.safetensors")
    trained = panel.gallery.sources["my star"].blora
    assert all(torch.equal(t, saved.state_dict[k]) for k, t in trained.state_dict.items())
    assert json.loads(saved.metadata["training"])["max_train_steps"] == 4
    assert chooser.train.disabled
    assert "learned" in status(panel)
    panel.generate.click()
    assert len(panel.errors) == 1
    assert panel.drawn.content_B_LoRA == "my star"
    assert "my star" in other.choosers["style"].choice.options
    assert other.choosers["style"].choice.value == "cat wood"
    upload(other.choosers["style"].upload, "my star.png", png(picture.rotate(90)))
    assert other.choosers["style"].choice.value == "my star-2"
    assert chooser.choice.value == "my star"


def test_the_same_file_is_uploaded_twice(panel, picture):
    chooser = panel.choosers["content"]
    for name in ("mine", "mine-2"):
        upload(chooser.upload, "mine.png", png(picture))
        assert chooser.choice.value == name


@pytest.mark.skipif(ipywidgets.__version__ == COLABS, reason="it keeps one file of a name")
def test_two_files_of_one_name_are_two_pictures(panel, picture):
    about = {"name": "mine.png", "type": "", "size": 0, "last_modified": 0}
    files = [about | {"content": png(picture.rotate(turn))} for turn in (0, 90)]
    panel.choosers["content"].upload.set_state({"value": files})
    for name, turn in (("mine", 0), ("mine-2", 90)):
        assert panel.gallery.sources[name].picture.tobytes() == picture.rotate(turn).tobytes()


def test_an_upload_in_one_panel_changes_nothing_in_another(panel, pipe, picture):
    other = AlphaPanel(pipe, style="cat wood", gallery=panel.gallery)
    chooser = panel.choosers["content"]
    # the first of the gallery, which would be chosen for a moment
    chooser.choice.value = next(iter(panel.gallery.sources))
    panel.generate.click()
    chooser.choice.value = "star sunset"
    panel.generate.click()
    chooser.download.click()
    before = (pixels(panel), status(panel), chooser.link.value)
    upload(other.choosers["style"].upload, "mine.png", png(picture))
    assert (pixels(panel), status(panel), chooser.link.value) == before
    assert "mine" in chooser.choice.options


def test_what_was_chosen_at_the_click_is_learned(panel, pipe, picture):
    chooser = in_background(panel).choosers["content"]
    upload(chooser.upload, "mine.png", png(picture))
    with pipeline_lock(pipe):
        chooser.train.click()
        until(lambda: "Waiting" in status(panel))
        upload(chooser.upload, "another.png", png(picture.rotate(90)))
    panel.worker.wait(30)
    assert panel.errors == []
    assert panel.gallery.sources["mine"].blora
    assert panel.gallery.sources["another"].blora is None


def test_a_name_without_a_picture_cannot_be_learned(pipe):
    panel = AlphaPanel(pipe, Source("empty"))
    panel.choosers["content"].train.click()
    assert "empty has no picture to learn from" in status(panel)


def test_a_drawing_is_used_and_learned(panel, picture):
    chooser = panel.choosers["content"]
    assert chooser.pad is None, "made when it is asked for"
    chooser.draw.set_state({"value": True})
    assert chooser.pad in all_widgets(panel)
    assert chooser.use_drawing.disabled, "nothing is drawn yet"
    chooser.pad.set_state({"drawn": png_address(png(picture))})
    assert not chooser.use_drawing.disabled
    chooser.use_drawing.click()
    assert chooser.choice.value == "drawing 1"
    assert chooser.source.picture.tobytes() == picture.tobytes()
    assert not chooser.draw.value
    assert chooser.below.layout.display == "none"
    assert "to teach the model drawing 1" in status(panel)
    chooser.train.click()
    assert panel.errors == []
    assert panel.gallery.sources["drawing 1"].blora

    pad = chooser.pad
    chooser.draw.set_state({"value": True})
    assert chooser.pad is pad, "the drawing is still there, to be changed"
    assert chooser.below.layout.display != "none"
    pad.set_state({"drawn": png_address(png(picture.rotate(90)))})
    chooser.use_drawing.click()
    assert chooser.choice.value == "drawing 2"
    assert panel.gallery.sources["drawing 1"].picture.tobytes() == picture.tobytes()
    pad.set_state({"drawn": ""})
    assert chooser.use_drawing.disabled


def test_colab_shows_no_pad_in_a_panel(pipe, examples, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    panel = AlphaPanel(pipe, "star sunset", gallery=examples)
    assert panel.choosers["content"].draw not in all_widgets(panel)


def test_paper_is_made_white_and_a_margin_is_added(panel, picture):
    chooser, other = panel.choosers["content"], panel.choosers["style"]
    white, margin = chooser.boxes["white_paper"], chooser.boxes["margin"]
    assert chooser.preparation.layout.display == "none", "only for uploaded pictures"
    dim = picture.point(lambda value: value * 0.6)
    upload(chooser.upload, "sketch.png", png(dim))
    assert chooser.preparation.layout.display == ""
    assert (white.value, margin.value) == (False, False)
    before = chooser.thumbnail.value
    white.set_state({"value": True})
    assert chooser.source.picture.tobytes() == paper_white(dim).tobytes()
    assert chooser.thumbnail.value != before
    margin.set_state({"value": True})
    both = with_margin(paper_white(dim), MARGIN)
    assert chooser.source.picture.tobytes() == both.tobytes()

    # the boxes belong to the picture, whoever chooses it
    other.choice.value = "sketch"
    assert other.boxes["margin"].value
    chooser.choice.value = "star sunset"
    assert not margin.value
    chooser.choice.value = "sketch"
    assert margin.value
    other.boxes["margin"].set_state({"value": False})
    assert not margin.value
    assert chooser.source.picture.tobytes() == paper_white(dim).tobytes()
    white.set_state({"value": False})
    assert chooser.source.picture.tobytes() == dim.tobytes()
    assert panel.errors == []


def test_a_learned_picture_is_prepared_no_more(panel, picture):
    chooser = panel.choosers["content"]
    upload(chooser.upload, "sketch.png", png(picture))
    chooser.boxes["margin"].set_state({"value": True})
    learned = chooser.source.picture
    chooser.train.click()
    assert panel.errors == []
    assert chooser.source.blora
    assert chooser.source.picture is learned
    assert chooser.preparation.layout.display == "none"


def test_a_margin_around_a_panorama_fits_into_memory(panel):
    chooser = panel.choosers["content"]
    upload(chooser.upload, "wide.png", png(Image.new("RGB", (9000, 90), "red")))
    chooser.boxes["margin"].set_state({"value": True})
    assert panel.errors == []
    assert chooser.source.picture.size == (4916, 4916)
    chooser.boxes["margin"].set_state({"value": False})
    assert chooser.source.picture.size == (9000, 90)


def test_a_picture_that_cannot_be_prepared_stays_as_it_is(panel, picture, monkeypatch):
    def too_large(*_):
        raise MemoryError("too large")

    monkeypatch.setattr(gallery_module, "with_margin", too_large)
    chooser = panel.choosers["content"]
    upload(chooser.upload, "sketch.png", png(picture))
    chooser.boxes["margin"].set_state({"value": True})
    assert "too large" in status(panel)
    assert not chooser.boxes["margin"].value
    assert chooser.source.picture.tobytes() == picture.tobytes()


def test_a_preparation_waits_for_a_change_of_the_gallery(picture):
    gallery = Gallery()
    gallery.add(Source("sketch", picture, upload=Upload(picture)))
    thread = threading.Thread(target=gallery.prepare, args=("sketch",), kwargs={"margin": True})
    with gallery._changing:
        thread.start()
        thread.join(0.5)
        gallery.add_trained("sketch", None, picture)
    thread.join()
    assert gallery.sources["sketch"].picture is picture, "what was learned is prepared no more"


@pytest.mark.parametrize("content", [b"", b"no picture at all", "truncated"])
def test_a_broken_upload_is_named_and_changes_nothing(panel, picture, content):
    upload(
        panel.choosers["style"].upload,
        "holiday.png",
        png(picture)[:2000] if content == "truncated" else content,
    )
    assert "holiday.png" in status(panel)
    assert "Error" in status(panel)
    assert "holiday.png" in str(panel.errors[0])
    assert panel.choosers["style"].choice.value == "flower neon"
    assert list(panel.gallery.sources).count("holiday") == 0
    panel.generate.click()
    assert len(panel.errors) == 1
    assert panel.picture


def test_cancel_stops_at_the_next_step_and_nothing_is_stuck(panel, pipe):
    in_background(panel)
    panel.steps.value = 150
    panel.generate.click()
    assert panel.generate.disabled
    assert not panel.worker.cancel.disabled
    until(lambda: panel.worker.progress.value >= 2)
    # a second click while it draws does nothing
    panel.generate.click()
    panel.worker.cancel.click()
    panel.worker.cancel.click()
    panel.worker.wait(30)
    assert "Cancelled" in status(panel)
    assert panel.picture is None
    assert panel.errors == []
    assert not panel.generate.disabled
    assert panel.worker.cancel.disabled
    panel.steps.value = 3
    panel.generate.click()
    panel.worker.wait(30)
    assert panel.picture
    assert "Done" in status(panel)


def test_training_is_cancelled_and_leaves_the_pipeline_clean(panel, pipe, picture):
    chooser = in_background(panel).choosers["content"]
    chooser.training_settings = TrainingSettings.for_pipeline(pipe, max_train_steps=10_000)
    upload(chooser.upload, "x.png", png(picture))
    chooser.train.click()
    until(lambda: panel.worker.progress.value >= 1)
    panel.worker.cancel.click()
    panel.worker.wait(30)
    assert "Cancelled" in status(panel)
    assert applied(pipe) == []
    assert not chooser.train.disabled


def test_an_interrupt_of_the_kernel_stops_blocking_work(panel):
    panel.steps.value = 150

    def interrupt(change):
        if change.new == 2:
            _thread.interrupt_main()

    panel.worker.progress.observe(interrupt, "value")
    panel.generate.click()
    assert "interrupt" in status(panel)
    assert panel.picture is None
    assert not panel.generate.disabled


@pytest.mark.slow
def test_two_panels_take_turns_on_one_pipeline(panel, pipe, examples, monkeypatch):
    other = in_background(
        AlphaPanel(pipe, "cat wood", "rocket candy", gallery=examples, num_inference_steps=3)
    )
    at_work, together = [], []

    def watched(*args, **kwargs):
        at_work.append(1)
        together.append(len(at_work))
        try:
            return generate(*args, **kwargs)
        finally:
            at_work.pop()

    monkeypatch.setattr(panels, "generate", watched)
    in_background(panel)
    for seed in range(3):
        for p in (panel, other):
            p.seed.value = seed
            p.generate.click()
        for p in (panel, other):
            p.worker.wait(60)
    assert together == [1] * 6
    assert panel.errors == other.errors == []
    for p in (panel, other):
        halves = (p.choosers[half].source.blora for half in ("content", "style"))
        options = {"seeds": 2, "num_inference_steps": 3, "progress": False}
        alone = generate(pipe, p.prompt.value, *halves, **options)[0]
        assert p.picture.tobytes() == alone.tobytes()


def test_waiting_for_the_pipeline_can_be_cancelled(panel, pipe):
    held, release = threading.Event(), threading.Event()

    def hold():
        with pipeline_lock(pipe):
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    in_background(panel).generate.click()
    until(lambda: "Waiting" in status(panel))
    panel.worker.cancel.click()
    panel.worker.wait(10)
    assert "Cancelled" in status(panel)
    assert not panel.generate.disabled
    release.set()
    thread.join()


def test_every_pipeline_has_a_lock_of_its_own(pipe, fresh):
    assert pipeline_lock(pipe) is pipeline_lock(pipe)
    assert pipeline_lock(pipe) is not pipeline_lock(fresh)


def test_an_unforeseen_error_of_a_thread_is_shown_and_kept(panel, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("<b>odd</b>")

    monkeypatch.setattr(panels, "generate", broken)
    in_background(panel).generate.click()
    panel.worker.wait(10)
    assert isinstance(panel.errors[0], ZeroDivisionError)
    assert "&lt;b&gt;odd" in status(panel)
    assert "Traceback" in status(panel)
    assert not panel.generate.disabled


def test_save_writes_the_settings_and_overwrites_nothing(panel, tmp_path):
    assert panel.save.disabled
    panel.prompt.value = "A <c>/[v] «猫» " + "very " * 60
    panel.generate.click()
    panel.save.click()
    panel.save.click()
    one, two = sorted((tmp_path / "out").glob("*.png"))
    settings = json.loads(Image.open(one).text["blora_nb"])
    assert Path(settings["content_B_LoRA"][0]).name == "star_sunset.safetensors"
    assert settings["seed"] == 0
    assert settings["num_inference_steps"] == 3
    assert settings["prompt"] == panel.prompt.value
    assert Image.open(two).tobytes() == panel.picture.tobytes()
    assert "download=" in panel.saved.value
    assert panel.errors == []
    panel.folder = one / "not a folder"
    panel.save.click()
    assert "Cannot write" in status(panel)
    assert len(panel.errors) == 1


def weights_of(blora, folder, name="downloaded.safetensors"):
    """The bytes of a file with this B-LoRA."""
    return BLoRA(blora.state_dict, dict(blora.metadata)).save(folder / name).read_bytes()


def again(panel, pipe):
    """A gallery as a page that is loaded again makes it."""
    return load_kept(Gallery(), panel.folder, pipe)


def same_weights(one, other):
    return one.fingerprint == other.fingerprint


@pytest.mark.parametrize("drawn", [False, True])
def test_what_was_trained_is_remembered(panel, pipe, picture, drawn):
    chooser = panel.choosers["content"]
    if drawn:
        chooser.draw.set_state({"value": True})
        chooser.pad.set_state({"drawn": png_address(png(picture))})
        chooser.use_drawing.click()
    else:
        upload(chooser.upload, "my star: <b>.png", png(picture))
    name = chooser.choice.value
    chooser.train.click()
    assert panel.errors == []
    (found,) = again(panel, pipe).sources.values()
    assert found.name == name
    assert same_weights(found.blora, chooser.source.blora)
    assert found.picture.tobytes() == centre_square(picture, 96).tobytes()
    assert files_of(found) == files_of(chooser.source)
    assert len(files_of(found)) == 2


def test_nothing_is_remembered_unless_asked(panel, pipe, picture):
    upload(panel.choosers["content"].upload, "mine.png", png(picture))
    panel.choosers["content"].train.click()
    assert "mine" not in example_gallery().sources
    other = AlphaPanel(pipe, picture, folder=panel.folder)
    assert list(other.gallery.sources) == ["content picture"]


def test_the_newest_is_remembered_last_and_names_stay_unique(pipe, examples, picture, tmp_path):
    gallery = Gallery()
    star = examples.sources["star sunset"].blora
    for name, age in (("a", 3), ("b", 1), ("c", 2)):
        gallery.add(Source(name, picture, star))
        file = keep(gallery, name, tmp_path)
        os.utime(file, (1e9 - age, 1e9 - age))
    assert list(load_kept(Gallery(), tmp_path, pipe).sources) == ["a", "c", "b"]
    twice = load_kept(load_kept(Gallery(), tmp_path, pipe), tmp_path, pipe)
    assert list(twice.sources) == ["a", "c", "b", "a-2", "c-2", "b-2"]
    (tmp_path / "b.safetensors").rename(tmp_path / "renamed.safetensors")
    assert list(load_kept(Gallery(), tmp_path, pipe).sources) == ["a", "c", "renamed"]


def test_a_picture_saved_under_the_same_name_is_not_taken_for_the_source(examples, tmp_path):
    (tmp_path / "star.png").write_bytes(b"another picture")
    gallery = Gallery()
    gallery.add(Source("star", None, examples.sources["star sunset"].blora))
    assert keep(gallery, "star", tmp_path).name == "star-2.safetensors"


def test_a_folder_that_is_not_there_is_no_error(pipe, tmp_path):
    gallery = load_kept(Gallery(), tmp_path / "nowhere", pipe)
    assert (gallery.sources, gallery.remarks) == ({}, [])


def larger(blora):
    """A B-LoRA for a model that is larger in every direction."""
    return BLoRA({key: t.repeat(2, 2) for key, t in blora.state_dict.items()})


def test_files_that_cannot_be_used_are_left_out_and_named(pipe, examples, tmp_path):
    star = examples.sources["star sunset"].blora
    weights_of(star, tmp_path, "good.safetensors")
    (tmp_path / "good.png").write_bytes(b"no picture")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    (tmp_path / "folder.safetensors").mkdir()
    weights_of(larger(star), tmp_path, "large.safetensors")
    gallery = load_kept(Gallery(), tmp_path, pipe)
    assert list(gallery.sources) == ["good"]
    assert "good.png" in gallery.sources["good"].remarks[-1]
    assert len(gallery.remarks) == 2
    told = AlphaPanel(pipe, "good", gallery=gallery).left_out.value
    assert "broken.safetensors" in told
    assert "large.safetensors was trained on a model with 288 channels" in told
    assert str(tmp_path) not in told
    for number in range(5):
        (tmp_path / f"worse{number}.safetensors").write_bytes(b"nothing")
    gallery = load_kept(Gallery(), tmp_path, pipe)
    assert len(gallery.remarks) == 4
    assert "4 more files" in gallery.remarks[-1]


def test_one_is_forgotten_after_a_second_click(panel, pipe, examples, picture):
    chooser, other = panel.choosers["content"], panel.choosers["style"]
    assert chooser.forget.layout.display == "none", "examples stay"
    upload(chooser.upload, "mine.png", png(picture))
    assert chooser.forget.layout.display == "none", "there is no file yet"
    chooser.train.click()
    other.choice.value = "mine"
    panel.generate.click()
    drawn = panel.picture
    assert chooser.confirmation.layout.display == "none"
    chooser.really_forget.click()
    assert "mine" in panel.gallery.sources, "a hidden button does nothing"
    chooser.forget.click()
    assert "mine.safetensors and mine.png" in chooser.question.value
    assert chooser.confirmation.layout.display == ""
    chooser.keep.click()
    assert chooser.confirmation.layout.display == "none"
    chooser.forget.click()
    chooser.choice.value = "cat wood"
    assert chooser.confirmation.layout.display == "none", "the question was about another"
    chooser.choice.value = "mine"
    chooser.forget.click()
    chooser.really_forget.click()
    assert panel.errors == []
    assert "mine" not in panel.gallery.sources
    assert "mine" not in (chooser.choice.value, other.choice.value)
    assert list(Path(panel.folder).iterdir()) == []
    assert again(panel, pipe).sources == {}
    assert "forgotten" in status(panel)

    # pictures drawn with it are not taken for those of another of its name
    upload(chooser.upload, "mine.png", png(picture.rotate(90)))
    chooser.train.click()
    other.choice.value = chooser.choice.value
    panel.generate.click()
    assert panel.errors == []
    assert panel.picture.tobytes() != drawn.tobytes()


def test_the_last_source_is_not_forgotten(pipe, examples, tmp_path):
    gallery = Gallery()
    gallery.add(Source("only", None, examples.sources["cat wood"].blora))
    keep(gallery, "only", tmp_path)
    panel = AlphaPanel(pipe, "only", gallery=gallery, folder=tmp_path)
    panel.choosers["content"].forget.click()
    assert "the only choice" in status(panel)
    assert panel.choosers["content"].confirmation.layout.display == "none"


def test_of_two_questions_only_one_is_answered_by_deleting(pipe, examples, tmp_path):
    gallery = Gallery()
    for name in ("one", "two"):
        gallery.add(Source(name, None, examples.sources["cat wood"].blora))
        keep(gallery, name, tmp_path)
    panel = AlphaPanel(pipe, "one", "two", gallery=gallery, folder=tmp_path)
    for chooser in panel.choosers.values():
        chooser.forget.click()
    for chooser in panel.choosers.values():
        chooser.really_forget.click()
    assert panel.errors == []
    assert list(gallery.sources) == ["two"]
    assert "two is the only choice" in status(panel)
    assert files_of(gallery.sources["two"])


def test_keeping_a_b_lora_leaves_the_callers_own_as_it_was(examples, tmp_path):
    star = examples.sources["star sunset"].blora
    mine = BLoRA(star.state_dict, dict(star.metadata))
    gallery = Gallery()
    gallery.add(Source("mine", None, mine))
    file = keep(gallery, "mine", tmp_path)
    assert (mine.metadata, mine.source) == (star.metadata, "")
    assert BLoRA.load(file).metadata["name"] == "mine"
    assert gallery.sources["mine"].blora.source == str(file)


def test_a_safetensors_file_is_uploaded_and_remembered(panel, pipe, examples, tmp_path):
    chooser = panel.choosers["style"]
    star = BLoRA(examples.sources["star sunset"].blora.state_dict)
    upload(chooser.upload, "from a friend.safetensors", weights_of(star, tmp_path))
    assert panel.errors == []
    assert chooser.choice.value == "from a friend"
    assert same_weights(chooser.source.blora, star)
    assert chooser.source.picture is None
    assert "no picture" in chooser.thumbnail.value
    assert chooser.train.disabled
    assert "is a B-LoRA" in status(panel)
    panel.generate.click()
    assert panel.errors == []
    assert panel.drawn.style_B_LoRA == "from a friend"
    (found,) = again(panel, pipe).sources.values()
    assert found.name == "from a friend"
    assert same_weights(found.blora, star)
    assert found.picture is None


@pytest.mark.parametrize("beside", ["a.png", "a.JPG"])
def test_a_picture_of_the_same_name_belongs_to_an_uploaded_b_lora(
    panel, pipe, picture, examples, tmp_path, beside
):
    chooser = panel.choosers["content"]
    star = weights_of(examples.sources["star sunset"].blora, tmp_path)
    other = png(picture.rotate(90))
    files = {beside: png(picture), "a.safetensors": star, "b.png": other}
    upload_several(chooser.upload, files)
    assert panel.errors == []
    assert chooser.choice.value == "b"
    assert "a-2" not in panel.gallery.sources
    assert panel.gallery.sources["a"].picture.tobytes() == picture.tobytes()
    assert panel.gallery.sources["b"].blora is None
    (found,) = again(panel, pipe).sources.values()
    assert found.picture.tobytes() == centre_square(picture, 96).tobytes()


def test_uploads_of_other_kinds_are_refused_by_name(panel, pipe, examples, tmp_path):
    chooser = panel.choosers["content"]
    before = list(panel.gallery.sources)
    star = examples.sources["star sunset"].blora
    files = {
        "old.ckpt": b"PK\x03\x04 anything",
        "notes.txt": b"some text",
        "cut.safetensors": weights_of(star, tmp_path)[:5000],
        "zip.safetensors": b"PK\x03\x04 anything at all",
        "sdxl.safetensors": weights_of(larger(star), tmp_path, "large.safetensors"),
    }
    upload_several(chooser.upload, files)
    for name in files:
        assert name in status(panel)
    assert "run code" in status(panel)
    assert "was trained on a model with 288 channels" in status(panel)
    assert len(panel.errors) == 1
    assert list(panel.gallery.sources) == before
    assert not Path(panel.folder).exists()


def test_half_a_b_lora_is_named_where_it_does_not_serve(panel, examples, tmp_path):
    style = examples.sources["star sunset"].blora.style
    upload(panel.choosers["content"].upload, "half.safetensors", weights_of(style, tmp_path))
    assert "half has no content half; choose it as style" in status(panel)


def downloaded(link):
    """The name and the content behind a link for a download."""
    name, data = re.search(r'download="([^"]+)" href="data:[^,]+,([^"]+)"', link.value).groups()
    return name, base64.b64decode(data)


def test_a_b_lora_is_downloaded(panel, picture, tmp_path):
    chooser = panel.choosers["content"]
    star = chooser.source.blora
    chooser.download.click()
    name, content = downloaded(chooser.link)
    assert name == "star_sunset.safetensors"
    (tmp_path / name).write_bytes(content)
    assert same_weights(BLoRA.load(tmp_path / name), star)
    chooser.choice.value = "cat wood"
    assert chooser.link.value == "", "it was of another"
    upload(chooser.upload, "mine.png", png(picture))
    assert chooser.download.layout.display == "none", "there is nothing yet"
    chooser.train.click()
    chooser.download.click()
    assert downloaded(chooser.link) == (chooser.source.file.name, chooser.source.file.read_bytes())


def test_the_place_of_a_file_too_large_for_a_link_is_named(panel, picture, monkeypatch):
    monkeypatch.setattr(chooser_module, "LARGEST_LINK", 1000)
    chooser = panel.choosers["content"]
    chooser.download.click()
    assert "href" not in chooser.link.value
    assert "star_sunset.safetensors" in chooser.link.value
    assert str(Path(panel.folder).resolve()) in chooser.link.value
    assert (Path(panel.folder) / "star_sunset.safetensors").exists()
    chooser.download.click()
    (file,) = Path(panel.folder).iterdir()
    file.unlink()
    chooser.download.click()
    assert file.exists(), "what is named is there"


def test_a_saved_picture_is_downloaded_with_its_settings(panel):
    panel.generate.click()
    panel.save.click()
    name, content = downloaded(panel.saved)
    (file,) = Path(panel.folder).iterdir()
    assert (name, content) == (file.name, file.read_bytes())
    assert json.loads(Image.open(BytesIO(content)).text["blora_nb"])["seed"] == 0


@pytest.mark.parametrize("prompt", ["", "   "])
def test_an_empty_prompt_is_named(panel, prompt):
    panel.prompt.set_state({"value": prompt})
    assert "prompt is empty" in status(panel)
    panel.generate.click()
    assert panel.picture
    assert "Done" in status(panel)
    assert "prompt is empty" in status(panel)
    assert "A [c] in [s] style" in status(panel)


def test_unknown_words_are_named(panel):
    panel.prompt.set_state({"value": "A [c] in xylophone style"})
    panel.generate.click()
    assert "never learned the word xylophone" in status(panel)


def test_what_is_not_learned_is_shown_without_a_result(pipe, picture):
    panel = AlphaPanel(pipe, picture)
    still = base64.b64decode(panel._repr_mimebundle_()[0]["image/png"])
    assert Image.open(BytesIO(still)).width > 150
    assert panel.picture is None
    assert panel.errors == []


def test_the_picture_in_a_file_of_weights_is_shown(pipe, picture, examples, tmp_path):
    blora = examples.sources["star sunset"].blora
    with_picture = BLoRA(blora.state_dict, blora.metadata | picture_metadata(picture))
    panel = AlphaPanel(pipe, with_picture.save(tmp_path / "star.safetensors"))
    assert panel.choosers["content"].source.picture.size == (128, 128)
    assert "content picture: star" in panel.choosers["content"].thumbnail.value
    damaged = BLoRA(blora.state_dict, {"modelspec.thumbnail": "data:image/png;base64," + "A" * 64})
    assert AlphaPanel(pipe, damaged).errors == []


def test_one_half_alone(pipe, examples):
    style, prompt = examples.sources["cat wood"].blora, "A fish in [s] style"
    panel = AlphaPanel(pipe, style=style, prompt=prompt, num_inference_steps=2)
    panel.generate.click()
    options = {"num_inference_steps": 2, "progress": False}
    expected = generate(pipe, prompt, style=style, **options)[0]
    assert panel.picture.tobytes() == expected.tobytes()
    caption = '"A fish in [s] style"; style: style B-LoRA, alpha +1.00; seed 0'
    assert panel.drawn.caption.startswith(caption)


def test_scores_that_cannot_be_compared_rank_no_seeds(pipe, examples, tmp_path):
    class Broken:
        def content_kept(self, images, picture):
            return [float("nan")] * len(images)

    panel = SeedPanel(pipe, "star sunset", gallery=examples, scorer=Broken(), folder=tmp_path)
    panel.count.value, panel.steps.value = 2, 1
    panel.generate.click()
    assert "content_kept gave [nan, nan]" in str(panel.errors[0])
    assert panel.order == []


@pytest.mark.slow
def test_seeds_are_ranked_and_one_is_picked(pipe, examples, tmp_path):
    scorer = scorer_for(pipe)
    panel = SeedPanel(
        pipe,
        "star sunset",
        "flower neon",
        gallery=examples,
        seed=4,
        count=3,
        num_inference_steps=6,
        folder=tmp_path,
    )
    panel.generate.click()
    assert panel.errors == []
    assert sorted(panel.order) == [4, 5, 6]
    halves = [examples.sources[name].blora for name in ("star sunset", "flower neon")]
    options = {"num_inference_steps": 6, "progress": False}
    images = {
        seed: generate(pipe, panel.prompt.value, *halves, seeds=seed, **options)[0]
        for seed in (4, 5, 6)
    }
    star, neon = (examples.sources[n].picture for n in ("star sunset", "flower neon"))
    weaker = {
        seed: min(scorer.content_kept([image], star)[0], scorer.style_moved([image], neon)[0])
        for seed, image in images.items()
    }
    assert panel.order == sorted(weaker, key=weaker.get, reverse=True)
    assert panel.picked == panel.order[0]
    last = panel.cards.children[2]
    assert f"{panel.scores[panel.order[2]]['style_moved']:.2f}" in last.children[0].value
    last.children[1].click()
    assert panel.picked == panel.order[2]
    assert pixels(panel) == images[panel.order[2]].tobytes()
    panel.save.click()
    (saved,) = tmp_path.glob("*.png")
    assert json.loads(Image.open(saved).text["blora_nb"])["seed"] == panel.order[2]
    assert "seeds 4 to 6" in panel.still().caption


def test_a_ranking_belongs_to_the_settings_it_began_with(pipe, examples):
    """Controls that move while seeds are drawn change neither the comparison nor what is saved."""
    panel = in_background(
        SeedPanel(pipe, "star sunset", gallery=examples, count=3, num_inference_steps=4)
    )
    panel.generate.click()
    until(lambda: panel.memory)
    panel.choosers["content"].choice.value = "cat wood"
    panel.seed.value = 50
    panel.worker.wait(30)
    assert sorted(panel.order) == [0, 1, 2]
    assert panel.drawn.content_B_LoRA == "star sunset"
    star = examples.sources["star sunset"].picture
    (kept,) = scorer_for(pipe).content_kept([panel.images[1]], star)
    assert panel.scores[1]["content_kept"] == pytest.approx(kept)


def test_seeds_drawn_before_a_cancel_are_kept(pipe, examples):
    panel = in_background(
        SeedPanel(pipe, "star sunset", gallery=examples, count=50, num_inference_steps=2)
    )
    panel.generate.click()
    until(lambda: len(panel.memory) >= 2)
    panel.worker.cancel.click()
    panel.worker.wait(30)
    kept = len(panel.memory)
    panel.count.value = 2
    panel.generate.click()
    panel.worker.wait(30)
    assert len(panel.memory) == kept < 50
    assert sorted(panel.order) == [0, 1]
    assert panel.errors == []


def test_a_ranking_without_a_picture_to_compare_with_is_explained(pipe, examples):
    mine = Source("mine", blora=examples.sources["cat wood"].blora)
    panel = SeedPanel(pipe, mine, count=2, num_inference_steps=1)
    panel.generate.click()
    assert "no picture to compare with" in str(panel.errors[0])
    assert "mine" in status(panel)
    assert panel.memory == {}, "nothing is drawn for it"
    with pytest.raises(ValueError, match="a content, a style, or both"):
        SeedPanel(pipe)


def test_a_still_picture_and_a_sentence_stand_in_for_the_widget(panel):
    from IPython.core.formatters import DisplayFormatter

    def shown():
        return DisplayFormatter().format(panel)[0]

    in_background(panel)
    bundle = shown()
    # the first picture is drawn when the panel is shown, before the next cell begins
    assert panel.picture
    assert "seed 0" in bundle["text/plain"]
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.model_id
    picture = Image.open(BytesIO(base64.b64decode(bundle["image/png"])))
    # the result stands on the right
    right = np.asarray(picture.convert("RGB"))[:, 2 * picture.width // 3 + 20 : -20]
    assert right.std() > 10


def test_a_still_picture_shows_what_it_was_drawn_with(panel):
    panel.generate.click()
    before = panel.still().png()
    panel.choosers["content"].choice.value = "cat wood"
    assert panel.still().png() == before


def test_every_control_says_what_it_is(panel):
    controls = [
        w
        for w in all_widgets(panel)
        if isinstance(w, ipywidgets.ValueWidget | ipywidgets.Button)
        and not isinstance(w, ipywidgets.HTML)
    ]
    names = [w.description for w in controls]
    assert len(names) >= 14
    assert all(names)
    assert len(set(names)) == len(names)
    assert not any(isinstance(w, ipywidgets.Output) for w in all_widgets(panel))
    assert 'role="status"' in status(panel)


def test_numbers_out_of_range_are_brought_into_it(panel):
    panel.seed.set_state({"value": -5})
    panel.steps.set_state({"value": 0})
    assert (panel.seed.value, panel.steps.value) == (0, 1)
    panel.generate.click()
    assert panel.errors == []
    assert panel.picture


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": -5}, "seed must be a number from 0 to 2147483647, not -5"),
        ({"content_alpha": 3}, "content_alpha must be a number from -2 to 2, not 3"),
        ({"style_alpha": "1"}, "style_alpha must be a number from -2 to 2, not '1'"),
        ({"num_inference_steps": 0}, "num_inference_steps must be a number from 1 to 1000, not 0"),
        ({"count": 100}, "count must be a number from 1 to 64, not 100"),
    ],
)
def test_arguments_out_of_range_are_refused(pipe, examples, given, said):
    with pytest.raises(ValueError, match=said):
        SeedPanel(pipe, "star sunset", gallery=examples, **given)


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        ("star sunst", "no picture star sunst.* The gallery has star sunset"),
        (np.zeros((8, 8, 3), np.uint8), r"not as ndarray. Image.fromarray\(array\) makes one"),
    ],
)
def test_what_is_no_source_is_named(pipe, examples, thing, said):
    with pytest.raises(ImageError, match=said):
        AlphaPanel(pipe, thing, gallery=examples)


def test_threads_are_used_where_their_progress_is_seen(monkeypatch):
    for name in ("JPY_SESSION_NAME", "SERVER_SOFTWARE", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    assert not threads_reach_the_page()
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    assert threads_reach_the_page()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert not threads_reach_the_page()


def install_colabs_ipywidgets(place):
    """Installed in a folder of its own, once; skips the test where that cannot be done."""
    if (place / "ipywidgets" / "_version.py").exists():
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--target", str(place)]
    command += [f"ipywidgets=={COLABS}", "ipython_genutils>=0.2"]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
        why = installed.stderr.strip().splitlines()[-1]
        pytest.skip(f"ipywidgets {COLABS} cannot be installed: {why}")


@pytest.mark.slow
@pytest.mark.skipif(ipywidgets.__version__ == COLABS, reason="this is that run")
def test_all_of_this_on_the_ipywidgets_of_colab(pytestconfig):
    """In a process of its own, with that version in front of the installed one."""
    place = Path(pytestconfig.cache.mkdir(f"ipywidgets-{COLABS}"))
    install_colabs_ipywidgets(place)
    path = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    check = f"import ipywidgets, sys; sys.exit(ipywidgets.__version__ != '{COLABS}')"
    assert subprocess.run([sys.executable, "-c", check], env=environment).returncode == 0
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-p", "no:nbval", "-o", "addopts=", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    # this one, and that of two files of one name, of which ipywidgets 7 keeps one
    assert "2 skipped" in run.stdout
