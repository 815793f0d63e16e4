"A run whose stages are shared by two processes: what happens when one of them is killed, and that it goes on afterwards"
import json, os, shutil, signal, subprocess, sys, sysconfig, time
from pathlib import Path
import numpy as np, psutil, pytest, torch
from dreamer4_nb.config import named
from dreamer4_nb.batches import Windows
from dreamer4_nb.training import read_log
from training_job import QUIET, learner, quiet, recordings

bin = Path(sysconfig.get_path('scripts'))
pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason='needs two cores')

@pytest.fixture
def start(tmp_path):
    "Starts a run whose tokenizer trains for long"
    config, started = named('smoke').change({'name': 'long', 'tokenizer_training.steps': 5000}).save(tmp_path/'config.json'), []
    def call():
        env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | dict(OMP_NUM_THREADS='1')
        p = subprocess.Popen([bin/'dreamer4_train', str(tmp_path/'run'), '--config', str(config), '--upto', 'tokenizer', '--unchecked'], text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, env=env)
        started.append(p)
        return p
    yield call
    for p in started: p.poll() is None and p.kill()

def last_step(out):
    log = out/'tokenizer'/'log.jsonl'
    rows = [json.loads(l) for l in log.read_text().splitlines() if l.endswith('}')] if log.exists() else []
    return rows[-1]['step'] if rows else 0

def helper_of(p):
    for child in psutil.Process(p.pid).children():
        try:
            if any('dreamer4_nb.run' in a for a in child.cmdline()): return child
        except psutil.Error: pass        # it has just ended

def training(p, out, since=0):
    "Wait until the stage has gone beyond a step; gives the helper process"
    for _ in range(900):
        time.sleep(.1)
        assert p.poll() is None, p.stderr.read()[-2000:]
        helper = helper_of(p)
        if helper and last_step(out) > since: return helper
    raise AssertionError(f'not beyond step {since} in 90 seconds')

def test_a_killed_helper_ends_the_run_with_one_line(start, tmp_path):
    p = start()
    training(p, tmp_path/'run').kill()
    error = p.communicate(timeout=60)[1]
    lines = [l for l in error.splitlines() if l.startswith('error:')]
    assert p.returncode == 1 and len(lines) == 1 and 'helpers.log' in lines[0] and 'run the same command again' in lines[0], error[-2000:]

def test_an_interrupted_run_goes_on_and_a_killed_one_takes_its_helper_along(start, tmp_path):
    p, out = start(), tmp_path/'run'
    training(p, out)
    p.send_signal(signal.SIGINT); p.communicate(timeout=60)
    assert p.returncode == 1
    saved = json.loads((out/'tokenizer'/'checkpoint'/'state.json').read_text())['step']
    assert saved >= 25
    again = start()
    helper = training(again, out, since=saved)      # later log lines are written only by a run that went on from there
    again.send_signal(signal.SIGKILL); again.wait()
    assert not psutil.wait_procs([helper], timeout=60)[1], 'the helper lives on'
    assert json.loads((out/'tokenizer'/'checkpoint'/'state.json').read_text())['step'] >= saved

def test_two_processes_update_as_one_does(tmp_path):
    "The sets of PMPO are those of all dreams together"
    job, env = Path(__file__).with_name('phase3_job.py'), {k: v for k, v in os.environ.items() if k not in ('RANK', 'WORLD_SIZE')} | dict(OMP_NUM_THREADS='1')
    one, two = tmp_path/'one.json', tmp_path/'two.json'
    for command in ([job, one], ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', job, two]):
        done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=180, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads(p.read_text()) for p in (one, two))
    assert 0 < one['positive'] < 1 and one['kl'] > 0
    assert two == pytest.approx(one, rel=1e-4, abs=1e-6)

# --- training by hand under torchrun: rows of a batch are shared, so the number of processes changes nothing

def torchrun(out, steps, seconds=0):
    clean = {k: v for k, v in os.environ.items() if k not in ('RANK', 'WORLD_SIZE')} | dict(OMP_NUM_THREADS='1')
    job = Path(__file__).with_name('training_job.py')
    return subprocess.Popen([sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', job, str(out), str(steps), str(seconds), 'quiet'],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=clean)

def on_two(out, steps):
    p = torchrun(out, steps); error = p.communicate(timeout=600)[1]
    assert p.returncode == 0, error[-3000:]

def on_one(out, steps):
    job = learner(out, steps, **QUIET); job.loss_fn = quiet
    job.fit(resume=True)

def curve(out): return np.array([r['loss'] for r in read_log(out)])

def test_the_number_of_processes_changes_nothing(tmp_path):
    one, two, back, forth = (tmp_path/n for n in ('one', 'two', 'back', 'forth'))
    on_one(one, 40)
    on_two(two, 20); shutil.copytree(two, back); on_two(two, 40)
    on_one(back, 40)                      # two began, one goes on
    on_one(forth, 20); on_two(forth, 40)  # one began, two go on
    assert len(curve(one)) == 40
    for other in (two, back, forth): np.testing.assert_allclose(curve(other), curve(one), rtol=1e-4)

def test_a_killed_worker_leaves_a_checkpoint_for_any_number(tmp_path):
    out, whole = tmp_path/'run', tmp_path/'whole'
    p = torchrun(out, 40, .2)
    saved = lambda: json.loads((out/'checkpoint'/'state.json').read_text())['step'] if (out/'checkpoint'/'state.json').exists() else 0
    for _ in range(600):
        time.sleep(.1)
        if saved() >= 5: break
    worker = next(c for c in psutil.Process(p.pid).children() if c.environ().get('RANK') == '1')
    worker.kill()
    assert p.wait(timeout=300) != 0 and 5 <= saved() < 40
    shutil.copytree(out, tmp_path/'again')
    on_one(out, 40); on_two(tmp_path/'again', 40); on_one(whole, 40)
    for other in (out, tmp_path/'again'): np.testing.assert_allclose(curve(other), curve(whole), rtol=1e-4)

@pytest.mark.parametrize('processes', [2, 3, 8])
def test_rows_are_shared_without_overlap_or_loss(processes):
    stream = lambda: Windows(recordings(), 12, [(8, 3), (24, 1)], single_image_fraction=.3, seed=3)
    whole, shares = stream(), [stream().shard(r, processes) for r in range(processes)]
    for _ in range(6):
        rows = [next(s) for s in shares]
        assert len({len(r['start']) for r in rows}) == 1
        b = next(whole)
        if len(b['start']) % processes: continue      # rounded up, so that all have as many
        for k in b: assert torch.equal(torch.stack([r[k] for r in rows], 1).flatten(0, 1), b[k])
