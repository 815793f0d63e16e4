"A run whose stages are shared by two processes: what happens when one of them is killed, and that it goes on afterwards"
import json, os, signal, subprocess, sys, sysconfig, time
from pathlib import Path
import psutil, pytest
from dreamer4_nb.config import named

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
