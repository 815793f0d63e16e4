"The console scripts as a user meets them: processes, exit codes, one line for an error."
import json, os, signal, subprocess, sysconfig, time
from pathlib import Path
import pytest

bin = Path(sysconfig.get_path('scripts'))
scripts = ['record', 'convert', 'train', 'evaluate', 'demo', 'claim']

def call(name, *args, **kw):
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    return subprocess.run([bin/f'dreamer4_{name}', *map(str, args)], capture_output=True, text=True, env=env, timeout=600, **kw)

def refused(done, *words, code=1):
    "One line of error that holds the words, no traceback"
    lines = [l for l in done.stderr.splitlines() if l.startswith('error:')]
    assert done.returncode == code and len(lines) == 1 and 'Traceback' not in done.stderr, done.stderr[-2000:]
    for w in words: assert w in lines[0], lines[0]

@pytest.mark.parametrize('name', scripts)
def test_help(name):
    done = call(name, '--help')
    assert done.returncode == 0 and 'usage' in done.stdout

@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A smoke run that was killed twice on its way"
    out = tmp_path_factory.mktemp('cli')/'run'
    command = [bin/'dreamer4_demo', '--size', 'smoke', '--out', str(out)]
    for seconds in (7, 12):
        p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(seconds); os.killpg(p.pid, signal.SIGKILL); p.wait()
    done = call('demo', '--size', 'smoke', '--out', out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'report:' in done.stdout and 'wood' in done.stdout
    return out

def test_demo_leaves_what_it_says(run):
    for name in ('run.json', 'results.json', 'report.html'): assert (run/name).stat().st_size > 100
    assert not [p for p in run.rglob('.tmp-*')]

def test_demo_again_changes_nothing(run):
    before = (run/'results.json').read_bytes()
    assert call('demo', '--size', 'smoke', '--out', run).returncode == 0
    assert (run/'results.json').read_bytes() == before

def test_other_configuration_is_refused(run): refused(call('demo', '--size', 'smoke', '--seed', 1, '--out', run), 'run.json', '--out')

def test_wrong_arguments():
    refused(call('demo', '--size', 'huge'), '--size', 'laptop', code=2)
    assert call('demo', '--seed', 'many').returncode == 2

def test_missing_and_empty_folders(tmp_path):
    refused(call('convert', tmp_path/'nothing', tmp_path/'out'), 'nothing')
    (tmp_path/'empty').mkdir()
    refused(call('convert', tmp_path/'empty', tmp_path/'out'), 'empty')
    refused(call('evaluate', tmp_path/'nothing'), 'run.json')
    assert not (tmp_path/'out'/'dataset.json').exists()

def damaged(run, tmp_path, name, content):
    "A copy of the run with one file replaced and its later stages to be done again"
    import shutil
    copy = tmp_path/'copy'; shutil.copytree(run, copy)
    (copy/name).write_bytes(content)
    state = json.loads((run/'run.json').read_text())
    if name != 'run.json':
        for stage in ('imagination', 'evaluate', 'report'): state['stages'].pop(stage)
        (copy/'run.json').write_text(json.dumps(state))
    return copy

def test_corrupt_run_file(run, tmp_path):
    refused(call('demo', '--size', 'smoke', '--out', damaged(run, tmp_path, 'run.json', b'{"format": ')), 'run.json')

def test_corrupt_policy(run, tmp_path):
    refused(call('demo', '--size', 'smoke', '--out', damaged(run, tmp_path, 'policies/bc.safetensors', b'\0'*40)), 'bc.safetensors')

def test_load_and_act(run):
    import numpy as np
    from dreamer4_nb.run import load
    pilot = load(run)
    action = pilot.act(np.zeros((64, 64, 3), np.uint8))
    assert action['action'] in ('noop', 'left', 'right', 'up', 'down', 'do')
    with pytest.raises(ValueError, match='frame'): pilot.act(np.zeros((32, 32, 3), np.uint8))
