"Dreams of pictures of one's own: pictures, actions and films of all kinds, and their errors"

import json

import numpy as np
import pytest
from PIL import Image
from test_cli import call

from dreamer4_nb.cli import main
from dreamer4_nb.data.actions import ActionCodec, ActionSpace
from dreamer4_nb.data.video import read_video
from dreamer4_nb.play.film import (
    MAX_STEPS,
    dream_film,
    parse_actions,
    read_actions,
    write_film,
)
from dreamer4_nb.play.panel import Panel
from dreamer4_nb.play.player import Player, read_picture, save_recording

KEYS = ActionCodec(ActionSpace(("forward", "jump"), "camera", {"craft": ["none", "planks"]}))
FLAT = ActionCodec(ActionSpace.flat(["noop", "left", "3"]))


@pytest.fixture(scope="module")
def player():
    return Player("pretrained")


@pytest.fixture(scope="module")
def frame(player):
    "(64, 64, 3), of a recording"
    return np.ascontiguousarray(player.recordings.frames(0)[9].transpose(1, 2, 0))


@pytest.fixture
def picture(frame, tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(frame.repeat(4, 0).repeat(4, 1)).save(path)
    return path


# ---- pictures


def test_a_picture_of_any_kind_is_read_as_it_is_shown(frame, tmp_path):
    large = Image.fromarray(frame.repeat(2, 0).repeat(2, 1))
    for name, image in {
        "plain.png": large,
        "alpha.png": large.convert("RGBA"),
        "plain.bmp": large,
        "plain.webp": large,
        "plain.tiff": large,
    }.items():
        options = {"lossless": True} if name.endswith("webp") else {}
        image.save(tmp_path / name, **options)
        read, changes = read_picture(tmp_path / name, (64, 64))
        assert (read == frame).all() and changes == ["resized from 128x128 to 64x64"], name
    gray = frame[..., 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for name in ("gray.png", "deep.png"):
        read, changes = read_picture(tmp_path / name, (64, 64))
        assert (read == gray[..., None]).all() and changes == [], name


def test_a_picture_is_held_as_its_file_says(frame, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    Image.fromarray(np.rot90(frame)).save(tmp_path / "turned.png", exif=exif)
    read, changes = read_picture(tmp_path / "turned.png", (64, 64))
    assert (read == frame).all() and changes == ["turned as its file says"]


def test_what_is_done_to_a_picture_is_said(frame, tmp_path):
    images = [Image.fromarray(np.full((30, 60, 3), n, np.uint8)) for n in (9, 200)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    read, changes = read_picture(tmp_path / "a.gif", (64, 64))
    assert (read == 9).all() and changes[0] == "the first of 2 frames"
    assert changes[1] == "resized from 60x30 to 64x64, which changes its proportions"
    clear = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    read, changes = read_picture(tmp_path / "clear.png", (64, 64))
    assert (read == 0).all() and changes == ["black where it is transparent"]
    for array in (frame, frame.transpose(2, 0, 1)):
        assert (read_picture(array, (64, 64))[0] == frame).all()
    assert read_picture(frame, (32, 48))[0].shape == (32, 48, 3)


@pytest.mark.parametrize(
    "content, word",
    [
        (b"", "no picture that can be read"),
        (b"no picture", "no picture that can be read"),
        (None, "no such picture"),
        ("folder", "is a folder. Hint: name one picture"),
        ("cut", "no picture that can be read"),
    ],
)
def test_what_is_no_picture_is_one_line(content, word, picture, tmp_path):
    path = tmp_path / "wrong.png"
    if content == "folder":
        path.mkdir()
    elif content == "cut":
        path.write_bytes(picture.read_bytes()[:-500])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, OSError), match=word) as error:
        read_picture(path, (64, 64))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "array", [np.zeros((64, 64, 3)), np.zeros((64, 64), np.uint8), np.zeros((0, 4, 3), "u1")]
)
def test_an_array_that_is_no_picture_is_one_line(array):
    with pytest.raises(ValueError, match="picture: .* of shape .*Hint: give uint8"):
        read_picture(array, (64, 64))


# ---- actions


@pytest.mark.parametrize(
    "text, steps",
    [
        ("forward", 1),
        ("forward*10", 10),
        ("10*forward", 10),
        ("forward * 10 , jump", 11),
        ("forward*2 camera left*3 craft planks", 6),
        ("camera_left; forward + jump * 2\nnoop", 4),
        ("# a walk\nforward\n\n  # and so on\nforward*3", 4),
    ],
)
def test_words(text, steps):
    assert parse_actions(text, KEYS).shape == (steps, KEYS.num_components)


def test_words_of_a_world_with_one_list_of_actions():
    assert parse_actions("3*2 left noop*2", FLAT)[:, 0].tolist() == [2, 2, 1, 0, 0]


@pytest.mark.parametrize(
    "text, word",
    [
        ("forwards", "'forwards' is unknown. Did you mean 'forward'?"),
        ("forward*3 xyzzy*2", "'xyzzy' is unknown. Hint: choose from noop, forward"),
        ("forward+fly", "'forward.fly' is unknown"),
        ("forward*0", "from 1 to"),
        (f"forward*{MAX_STEPS}, forward", f"{MAX_STEPS + 1} steps. Hint: give 1 to"),
        ("forward*99999999999999999999", "from 1 to"),
        ("forward*-1", "'forward..1' is unknown"),
        ("", "0 steps"),
        (" , # nothing", "is unknown"),
        ("missing.txt", "missing.txt: no such file"),
        ("no/such.npy", "no/such.npy: no such file"),
    ],
)
def test_words_that_mean_nothing_are_one_line(text, word):
    with pytest.raises((ValueError, OSError), match=word) as error:
        read_actions(text, KEYS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, content, word",
    [
        ("a.json", "{", "Expecting"),
        ("a.json", "3", "give a list"),
        ("a.json", "[]", "0 steps"),
        ("a.json", '["fly"]', "'fly' is unknown"),
        ("a.json", '[{"fly": 1}]', "'fly': unknown key"),
        ("a.json", '[{"forward": 2}]', "a key is 0 or 1, got 2"),
        ("a.json", '{"forward": [1, 0], "jump": [1]}', "lengths disagree"),
        ("a.json", '{"forward": 1}', "give a list, a value for each step"),
        ("a.json", "[[1, 0]]", "expected 4 components"),
        ("a.json", "[[1, 0, 500, 0]]", "outside its range"),
        ("a.jsonl", "no log", "a.np|a.jsonl"),
        ("a.txt", "fly", "'fly' is unknown"),
        ("a.txt", b"\xff\xfe\x00", "decode"),
        ("a.npy", b"no array", "a.np|a.jsonl"),
        ("a.npz", b"no array", "a.np|a.jsonl"),
        ("a.npz", b"PK\x03\x04 cut", "a.npz"),
        ("a.npy", np.zeros((3, 4)), "float64"),
        ("a.npy", np.zeros(3, np.int64), "give class numbers"),
        ("a.npy", np.full((3, 4), 7), "outside its range"),
    ],
)
def test_a_file_that_means_nothing_is_one_line(name, content, word, tmp_path):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match=word) as error:
        read_actions(str(path), KEYS)
    assert "\n" not in str(error.value)
    if "0 steps" not in word:
        assert str(error.value).startswith(str(path))


def test_actions_of_recordings(player, tmp_path):
    "Of one that was converted, and of one in MineRL's layout"
    recorded = player.recordings.actions(0)
    episode = player.recordings._path(0, ".")
    assert (read_actions(episode, player.codec) == recorded).all()
    game = Player(player.run).reset(0, 4)
    names = ["left", "do", "noop"]
    for name in names:
        game.step(name)
    folder = save_recording(game, tmp_path)
    actions = read_actions(str(folder), player.codec)
    assert (actions == parse_actions(" ".join(names), player.codec)).all()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: is a folder without rendered.npz"):
        read_actions(tmp_path / "empty", player.codec)


def test_a_log_of_vpt_is_read(tmp_path):
    line = {
        "mouse": {"dx": 10.0, "dy": 0.0, "buttons": [], "newButtons": []},
        "keyboard": {"keys": ["key.keyboard.w"], "newKeys": [], "chars": ""},
        "isGuiOpen": False,
        "hotbar": 0,
        "tick": 0,
    }
    lines = [json.dumps(line | {"tick": t, "milli": 50.0 * t}) for t in range(3)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    codec = ActionCodec(ActionSpace.vpt())
    actions = codec.decode(read_actions(tmp_path / "log.jsonl", codec))
    assert actions["forward"].tolist() == [1, 1, 1]
    assert (actions["camera"][:, 1] > 0).all()


# ---- the player and its film


def test_the_dream_of_a_recorded_frame_is_that_of_its_picture(player, frame):
    "As far as the frames before it do not matter: an episode's first has none"
    first = player.reset(0, 0).history[0].frame.astype(int)
    begun = player.recordings.frames(0)[0]
    assert abs(player.begin_at(begun).history[0].frame - first).mean() < 1
    assert player.why_no_world == "no true world beside it: the dream begins at a picture"


def test_a_game_from_a_picture_is_played_as_any_other(player, picture, tmp_path):
    player.begin_at(picture)
    frames = [player.step(name).frame for name in ("right", "do", "down")]
    assert player.step_back() and (player.step("down").frame == frames[2]).all()
    assert player.play("imagination").true_frame is None
    recording = save_recording(player, tmp_path)
    assert recording.name == "v3_dreamed_picture_0_4"
    metadata = json.loads((recording / "metadata.json").read_text())
    assert metadata["began"] == {"picture": "picture"}
    with pytest.raises(ValueError, match="begins at a picture"):
        save_recording(player, tmp_path, truth=True)
    assert (player.begin_again().step("right").frame == frames[0]).all()
    with pytest.raises(ValueError, match="'compass' is not read by this run. Hint"):
        player.begin_at(picture, {"compass": 1.0})
    assert player.reset(0, 4).why_no_world == ""


def test_a_panel_begins_a_picture_again(picture, tmp_path):
    pytest.importorskip("anywidget")
    panel = Panel(Player("pretrained").begin_at(picture), tmp_path)
    panel.do("right")
    panel.do("restart")
    assert panel.player.episode is None and len(panel.player.history) == 1
    panel.do("save film")
    assert (tmp_path / "picture_0_0.gif").exists()
    panel.settings.start.value = 5
    assert (panel.player.episode, panel.player.start) == (0, 5)
    panel.close()


def test_films(player, frame, tmp_path):
    shown = np.stack([frame.transpose(2, 0, 1)] * 3)
    shown[1] = 255 - shown[1]
    shown[2] //= 2
    with Image.open(write_film(shown, tmp_path / "new" / "film.gif")) as gif:
        assert (gif.n_frames, gif.size) == (3, (256, 256))
    pytest.importorskip("av")
    odd = shown[:, :, :63, :61]
    film = read_video(write_film(odd, tmp_path / "film.MP4", 20, 1))
    assert film.shape == (3, 64, 62, 3)
    difference = film[:, :63, :61].astype(float) - odd.transpose(0, 2, 3, 1)
    assert abs(difference).mean() < 12
    for wrong, word in (
        ("film.avi", "ends in .gif or .mp4"),
        ("film", "ends in"),
        (".", "ends in"),
    ):
        with pytest.raises((ValueError, OSError), match=word):
            write_film(shown, tmp_path / wrong)
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(OSError, match="is a folder"):
        write_film(shown, tmp_path / "folder.gif")


def test_a_picture_that_the_model_does_not_know_is_told_of(player, frame, tmp_path):
    film = dream_film(frame, "noop", tmp_path / "a.gif", player.run)
    assert film.notes == [] and len(film.history) == 2
    assert film.reward == film.history[1].reward
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (note,) = dream_film(noise, "noop", tmp_path / "b.gif", player.run).notes
    assert "it has seen none like it" in note
    with pytest.raises(ValueError, match="'fly' is unknown"):
        dream_film(frame, "fly", tmp_path / "c.gif", player.run)
    assert not (tmp_path / "c.gif").exists()


# ---- the command


def test_the_command(picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call("dream", picture, "--actions", "right*3", "do")
    assert done.returncode == 0, done.stderr
    assert "picture.png: resized from 256x256 to 64x64" in done.stdout
    assert "film: dream.gif (4 steps, predicted reward" in done.stdout
    with Image.open(tmp_path / "dream.gif") as gif:
        assert gif.size == (256, 256)


@pytest.mark.parametrize(
    "args, words",
    [
        ((), ("--actions",)),
        (("--actions", "do", "--out", "film.avi"), ("film.avi", ".gif or .mp4")),
        (("--actions", "do", "--fps", "0"), ("--fps 0", "1 to 50")),
        (("--actions", "do", "--scale", "0"), ("--scale 0",)),
        (("--actions", "do", "--device", "gpu"), ("device = 'gpu'",)),
        (("--actions", "do", "--run", "x", "--pretrained"), ("--pretrained x",)),
    ],
)
def test_wrong_arguments_of_the_command(args, words, picture, capsys, monkeypatch):
    monkeypatch.chdir(picture.parent)
    with pytest.raises(SystemExit) as end:
        main(["dream", str(picture), *args])
    written = capsys.readouterr()
    assert end.value.code == 2 and "Traceback" not in written.err
    text = " ".join(written.err.replace("│", " ").split())
    assert all(word in text for word in words), text
    assert [path.name for path in picture.parent.iterdir()] == ["picture.png"]


@pytest.mark.parametrize(
    "args, word",
    [
        (("none.png", "--actions", "do"), "none.png: no such picture"),
        (("picture.png", "--actions", "fly"), "'fly' is unknown"),
        (("picture.png", "--actions", "a.txt"), "a.txt: no such file of actions"),
        (("picture.png", "--actions", "do", "--run", "nowhere"), "nowhere/run.json: no run"),
        (("picture.png", "--actions", "do", "--observations", "compass", "3"), "not read by"),
    ],
)
def test_errors_of_the_command_are_one_line(args, word, picture, capsys, monkeypatch):
    monkeypatch.chdir(picture.parent)
    with pytest.raises(SystemExit) as end:
        main(["dream", *args])
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 1 and len(lines) == 1 and word in lines[0], lines
    assert [path.name for path in picture.parent.iterdir()] == ["picture.png"]
