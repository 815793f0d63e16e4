"Gymnasium finds our worlds, checks them and steps them together."

import subprocess
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dreamer4_nb.worlds.registration import ENVIRONMENTS, register_environments

pytest.importorskip("crafter")
WORLDS = [name for name in ENVIRONMENTS if name != "Dream-v0"]


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.filterwarnings("ignore:.*render_fps:UserWarning")
def test_a_world_passes_gymnasiums_checker(name):
    check_env(gymnasium.make(f"dreamer4_nb/{name}").unwrapped, skip_render_check=True)


@pytest.mark.parametrize("name", WORLDS)
def test_worlds_are_stepped_together(name):
    envs = gymnasium.make_vec(f"dreamer4_nb/{name}", num_envs=2)
    envs.reset(seed=0)
    _, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
    envs.close()
    assert rewards.shape == terminated.shape == truncated.shape == (2,)


def test_each_in_a_process_of_its_own():
    name = "dreamer4_nb/CrafterCollectWood-v0"
    together = gymnasium.make_vec(name, num_envs=2, vectorization_mode="sync")
    apart = gymnasium.make_vec(name, num_envs=2, vectorization_mode="async")
    frames = together.reset(seed=3)[0]
    assert (frames == apart.reset(seed=3)[0]).all()
    actions = np.array([1, 5])
    assert (together.step(actions)[0] == apart.step(actions)[0]).all()
    together.close()
    apart.close()


def test_registering_again_does_no_harm(recwarn):
    register_environments()
    assert not [w for w in recwarn if "Overriding" in str(w.message)]


@pytest.mark.parametrize(
    "imports",
    ["import gymnasium, dreamer4_nb", "import dreamer4_nb.worlds.registration, gymnasium"],
)
def test_importing_is_enough(imports):
    code = f"{imports}; print(gymnasium.spec('dreamer4_nb/VoxelTreechop-v0').id)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "dreamer4_nb/VoxelTreechop-v0", out.stderr
