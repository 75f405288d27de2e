"""The judge of the page on judging is a server that runs; its three commands run whole in tests/long."""

import http.server
import pathlib
import re
import threading

import pytest

from dro_jax.evaluation.judge.endpoint import Client, Endpoint
from dro_jax.evaluation.judge.judges import Comparison, make_judge
from dro_jax.evaluation.judge.templates import fill, load
from tests.docs.test_extend import BLOCK

PAGE = pathlib.Path(__file__).resolve().parents[2] / 'docs/guides/judging.md'


def server_of_the_page():
  """The page's server, on any port, in a thread."""
  [script] = [text for kind, text in BLOCK.findall(PAGE.read_text()) if text.startswith('# judge_server.py')]
  names = {'__name__': 'judge_server'}
  exec(compile(script, 'judge_server.py', 'exec'), names)
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), names['Judge'])
  threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
  return server


def test_the_pages_server_judges_as_the_exact_reward_does(tmp_path):
  pytest.importorskip('openai')
  comparisons = [
    Comparison('sort: cab', 'abc', 'cab'),
    Comparison('sort: cab', 'cab', 'abc\n'),
    Comparison('sort: cab', '', 'a\nb'),
  ]
  exact = make_judge(tmp_path, reward='exact_match').judge(comparisons)
  server = server_of_the_page()
  try:
    endpoint = Endpoint(model='exact', base_url=f'http://127.0.0.1:{server.server_port}/v1')
    assert make_judge(tmp_path, endpoint=endpoint).judge(comparisons).verdicts == exact.verdicts
    reply = Client(endpoint).attempt(fill(load('helpfulness'), *comparisons[0]), '00')
    assert reply.text.endswith('Verdict: A')
  finally:
    server.shutdown()
    server.server_close()


def test_the_page_names_the_settings_that_there_are():
  gin = (PAGE.parents[2] / 'gin_configs/runs/judge.gin').read_text()
  named = set(re.findall(r'`([A-Z][A-Z0-9_]{3,})(?:=[^`]*)?`', PAGE.read_text()))
  known = set(re.findall(r'^([A-Z][A-Z0-9_]*) *=', gin, re.MULTILINE)) | {
    'NAME', 'SIGTERM', 'SIGKILL', 'KEEP_LAST', 'TEST_FRACTION',
  }  # fmt: skip
  assert len(named) > 15 and named <= known, named - known
