import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_pages import NAMES, SUBJECT, Page, predict, read_example, summary

from errors import InputError
from training.report import folder as report_folder
from training.report.folder import report_files, write_report
from training.report.html import Subject
from training.report.output import prepare_folder
from training.reporting import print_result


def write(folder, predictions=None, names=NAMES, subject=SUBJECT, **options):
    predictions = predictions or predict(len(names), 60)
    report = summary(predictions, names)
    write_report(folder, report, predictions, subject, options.pop("read_example", read_example), **options)
    return report, (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def quick_contents(monkeypatch):
    """Stands in for what takes long to draw, where only the order of the writing matters."""
    pictures = {name: name.encode() for name in report_folder.PICTURE_NAMES}
    monkeypatch.setattr(report_folder, "draw_pictures", lambda *_: pictures)
    monkeypatch.setattr(report_folder, "render_html", lambda report, *_: str(report["top1"]))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report, text = write(folder)
    return folder, report, text, Page(text)


def test_the_page_has_the_balanced_accuracy(written):
    _, report, text, _ = written
    assert f"the mean of the classes’ top-1 accuracies: {report['balanced_accuracy'] * 100:.1f} %." in text
    assert report["balanced_accuracy"] != report["top1"]


def test_report_json_is_the_summary(written):
    folder, report, _, _ = written
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == report
    assert list(report) == [
        *("split", "samples", "crops", "top1", "top5", "top1_error", "top5_error", "loss", "per_class"),
        *("checkpoint", "manifest_sha256", "images_per_second", "view", "weights_sha256", "balanced_accuracy"),
        *("members", "comparison", "retrieval"),
    ]


def test_strings_of_the_data_set_are_escaped(written):
    _, _, text, page = written
    assert len(page.of("script")) == 1
    assert "alert(1)" in text
    assert not [attributes for _, attributes in page.tags if "onload" in attributes]
    assert "pets &amp; &lt;co&gt;" in text
    assert "a&lt;b.pt" in text
    assert any(image.get("alt", "").startswith("sample key<") for image in page.of("img"))


def test_page_shows_the_headline_numbers_and_every_class(written):
    _, report, text, page = written
    for name in ("top1", "top5", "top1_error", "top5_error"):
        assert f"{report[name] * 100:.1f} %" in text
    assert f"{report['loss']:.3f}" in text
    assert "1,234,567 parameters" in text
    assert "ab" * 32 in text
    for name in NAMES:
        assert name in page.cells


def test_page_marks_the_bar_of_the_true_class(written):
    _, _, _, page = written
    bars = [attributes for attributes in page.of("li") if "--p" in attributes.get("style", "")]
    # Here the true class is always the first or second guess: one marked bar on each card.
    assert len(bars) == 5 * 24
    assert [bar.get("class") for bar in bars].count("true") == 24
    for i in range(0, len(bars), 5):
        marked = [j for j, bar in enumerate(bars[i : i + 5]) if bar.get("class") == "true"]
        assert marked in ([0], [1])
    assert all(bars[i].get("class") is None for i in range(60, 120, 5)), "an error's first guess is marked"


def test_pictures_in_the_page_and_in_the_folder_can_be_decoded(written):
    folder, _, _, page = written
    for image in page.of("img"):
        Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))).load()
    assert [str(path) for path in report_files(folder)] == [
        "report.json",
        "report.html",
        "pictures/conv1-kernels.png",
        "pictures/predictions.png",
        "pictures/errors.png",
        "pictures/confusion.png",
    ]
    for path in report_files(folder)[2:]:
        Image.open(folder / path).load()


def test_the_same_evaluation_gives_the_same_bytes(written, tmp_path):
    folder, *_ = written
    write(tmp_path)
    for path in report_files(folder):
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes(), path


@pytest.mark.usefixtures("quick_contents")
def test_nothing_but_the_report_is_left_in_the_folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for mine in ("notes.txt", "pictures/holiday.png"):
        (tmp_path / mine).write_text("mine")
    write(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["notes.txt", "pictures", "report.html", "report.json"]
    assert (tmp_path / "pictures/holiday.png").read_text() == "mine"


def test_pictures_of_an_older_report_do_not_stay(tmp_path):
    write(tmp_path)
    write(tmp_path, predict(6, 30, accuracy=1.0), subject=Subject("lenet5", 1, "digits", SUBJECT.conv1))
    assert [path.name for path in report_files(tmp_path)] == [
        "report.json",
        "report.html",
        "conv1-kernels.png",
        "predictions.png",
        "confusion.png",
    ]
    assert not (tmp_path / "pictures/errors.png").exists()


def test_kernels_without_structure_are_called_that(written, tmp_path, capsys):
    """On the page, in the texts of the pictures, and on the terminal."""
    folder, report, text, page = written
    assert "These kernels have no structure yet: they are still close to their random start." in text
    drawn = [image["alt"] for image in page.of("img") if " kernels, " in image["alt"]]
    assert [alt.rpartition(", ")[2] for alt in drawn] == ["no structure yet"] * 2
    print_result(report, SUBJECT, folder)
    assert "\nthe kernels of conv1 have no structure yet: " in capsys.readouterr().out
    smooth = Subject("alexnet", 1, "pets", np.ones((8, 3, 5, 5)) * np.linspace(-1, 1, 5), 2)
    _, text = write(tmp_path, subject=smooth)
    assert "no structure" not in text
    print_result(report, smooth, Path("r"))
    assert "structure" not in capsys.readouterr().out
    assert "Neighbouring weights correlate by 0." in text


def test_no_errors_and_one_sample_have_a_page(tmp_path):
    report, text = write(tmp_path, predict(6, 1, accuracy=1.0))
    assert report["top1"] == 1.0
    assert "No errors" in text
    assert "Most confused pairs" not in text


def test_few_classes_have_no_top5_on_the_page(tmp_path):
    _, text = write(tmp_path, predict(3, 20), names=["a", "b", "c"])
    assert "fewer than five classes" in text
    assert ">top-5<" not in text


@pytest.mark.usefixtures("quick_contents")
def test_interrupted_while_the_contents_are_made_nothing_is_left(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report_folder, "render_html", stop)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick_contents")
def test_interrupted_among_the_renames_no_mixture_is_taken_for_whole(tmp_path, monkeypatch):
    """An older report is there; whichever rename is the last to happen, old and new never pass as one."""
    replace = Path.replace
    renames = len(report_folder.PICTURE_NAMES) + 2
    for allowed in range(renames):
        write(tmp_path)
        done = []

        def stop_after(self, target, done=done, allowed=allowed):
            if len(done) == allowed:
                raise KeyboardInterrupt
            done.append(target)
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", stop_after)
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path, predict(6, 30, seed=1))
        with pytest.raises(FileNotFoundError, match=r"no report\.json"):
            report_files(tmp_path)
        assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.usefixtures("quick_contents")
def test_what_a_killed_process_left_does_not_stand_in_the_way(tmp_path):
    (tmp_path / "pictures").mkdir()
    for left in (".report.json.node-1.partial", "pictures/.errors.png.node-1.partial"):
        (tmp_path / left).write_text("half")
    write(tmp_path)
    assert len(report_files(tmp_path)) == 6
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.usefixtures("quick_contents")
def test_a_failing_evaluation_leaves_the_older_report_whole(tmp_path):
    write(tmp_path)
    before = {path: (tmp_path / path).read_bytes() for path in report_files(tmp_path)}

    def broken(_):
        raise OSError("no such shard")

    with pytest.raises(OSError, match="no such shard"):
        write(tmp_path, predict(6, 30, seed=1), read_example=broken)
    assert {path: (tmp_path / path).read_bytes() for path in report_files(tmp_path)} == before


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match=r"output folder .*out cannot be written to"):
        prepare_folder(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
    assert prepare_folder(tmp_path / "new/deep").is_dir()


def test_imagenet_sized_report_stays_small(tmp_path):
    names = [f"class number {i} with a name of a usual length" for i in range(1000)]
    _, text = write(tmp_path, predict(1000, 50_000), names=names)
    assert all(f">{name}</td>" in text for name in names)
    assert "All 1,000 classes" in text
    assert not (tmp_path / "pictures/confusion.png").exists()
