"A run whose stages are shared by two processes: what happens when one of them is killed, and that it goes on afterwards"
import json, os, signal, subprocess, sys, sysconfig, time
from pathlib import Path
import psutil, pytest
from dreamer4_nb.config import named

bin = Path(sysconfig.get_path('scripts'))
pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason='needs two cores')

@pytest.fixture
def start(tmp_path):
    "Start a run whose tokenizer trains for long; gives the process, and its helper once that is there"
    config = named('smoke').change({'name': 'long', 'tokenizer_training.steps': 3000}).save(tmp_path/'config.json')
    started = []
    def call(steps=None):
        if steps: named('smoke').change({'name': 'long', 'tokenizer_training.steps': steps}).save(config)
        p = subprocess.Popen([bin/'dreamer4_train', str(tmp_path/'run'), '--config', str(config), '--upto', 'tokenizer'], text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True, env=os.environ | dict(OMP_NUM_THREADS='1'))
        started.append(p)
        return p
    yield call
    for p in started: p.poll() is None and p.kill()

def training(p, out):
    "Wait until the stage has made steps; the helper process"
    log = out/'tokenizer'/'log.jsonl'
    for _ in range(600):
        time.sleep(.1)
        assert p.poll() is None, p.stderr.read()[-2000:]
        helpers = [c for c in psutil.Process(p.pid).children() if any('dreamer4_nb.run' in a for a in c.cmdline())]
        if helpers and log.exists() and log.read_text().count('\n') > 1: return helpers[0]
    raise AssertionError('no step in a minute')

def test_a_killed_helper_ends_the_run_with_one_line(start, tmp_path):
    p = start()
    training(p, tmp_path/'run').kill()
    error = p.communicate(timeout=60)[1]
    lines = [l for l in error.splitlines() if l.startswith('error:')]
    assert p.returncode == 1 and len(lines) == 1 and 'helpers.log' in lines[0] and 'run the same command again' in lines[0], error[-2000:]

def test_a_killed_run_takes_its_helper_along_and_goes_on(start, tmp_path):
    p = start()
    helper = training(p, tmp_path/'run')
    p.send_signal(signal.SIGKILL); p.wait()
    assert not psutil.wait_procs([helper], timeout=60)[1], 'the helper lives on'
    again = start()
    training(again, tmp_path/'run')
    again.send_signal(signal.SIGINT); again.communicate(timeout=60)
    assert again.returncode == 1
    state = json.loads((tmp_path/'run'/'tokenizer'/'checkpoint'/'state.json').read_text())
    assert state['step'] > 0 and (tmp_path/'run'/'tokenizer'/'checkpoint'/'model.safetensors').exists()
