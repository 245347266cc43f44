/**
 * Goal: programs get JSON lines and nothing else, people get sentences, and progress never floods either.
 *
 * Method: sinks that keep their text, and a clock that the test moves.
 */

import { PassThrough } from 'node:stream';
import t from 'tap';
import { CorruptionError, ManualClock } from '../base/index.ts';
import { UsageError } from './exit.ts';
import { describe, Output, table } from './output.ts';

function makeOutput(options: { json?: boolean; debug?: boolean; terminal?: boolean } = {}) {
  const clock = new ManualClock();
  const stdout = new PassThrough().setEncoding('utf8');
  const stderr = Object.assign(new PassThrough().setEncoding('utf8'), { isTTY: options.terminal ?? false });
  const output = new Output({
    stdout,
    stderr,
    clock,
    json: options.json ?? false,
    debug: options.debug ?? false,
  });
  const read = (stream: PassThrough): string => String(stream.read() ?? '');
  return { output, clock, printed: () => read(stdout), complained: () => read(stderr) };
}

function step(done: number, title = 'Backing up') {
  return { title, done, total: 100, event: { tracksDone: done } };
}

t.test('programs get one JSON object a line, the last one done', (t) => {
  const { output, printed, complained } = makeOutput({ json: true });
  output.report({ event: 'set', set: 'X', freezeMs: 1 }, 'a sentence');
  output.done();
  t.equal(printed(), '{"event":"set","set":"X","freezeMs":1}\n{"event":"done"}\n');
  t.equal(complained(), '');
  t.end();
});

t.test('people get sentences, and nothing for done', (t) => {
  const { output, printed } = makeOutput();
  output.report({ event: 'set' }, 'first', 'second');
  output.done();
  t.equal(printed(), 'first\nsecond\n');
  t.end();
});

t.test('an error is a line on standard error, and an event for programs', (t) => {
  for (const json of [false, true]) {
    const { output, printed, complained } = makeOutput({ json });
    output.fail(new UsageError('--size is wrong'));
    t.equal(complained(), 'cowbell: --size is wrong\n');
    t.equal(printed(), json ? '{"event":"error","code":"usage","message":"--size is wrong"}\n' : '');
  }
  const { output, printed } = makeOutput({ json: true });
  output.fail(new CorruptionError('Set X is damaged', { where: 'X' }));
  t.match(JSON.parse(printed()), { code: 'corruption' });
  t.end();
});

t.test('a stack trace only with --debug, causes included', (t) => {
  const error = new Error('outer', { cause: new Error('inner') });
  const quiet = makeOutput();
  quiet.output.fail(error);
  t.equal(quiet.complained(), 'cowbell: outer\n');
  const loud = makeOutput({ debug: true });
  loud.output.fail(error);
  t.match(loud.complained(), /^cowbell: outer\nError: outer\n {4}at [^]*caused by: Error: inner\n/);
  t.end();
});

t.test('progress for programs is bounded by time, first and last always told', (t) => {
  const { output, clock, printed } = makeOutput({ json: true });
  for (let done = 0; done <= 100; done += 1) {
    output.progress(step(done));
    clock.advance(10);
  }
  const events = printed()
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as unknown);
  t.strictSame(
    events.slice(0, -1),
    [0, 20, 40, 60, 80].map((tracksDone) => ({ event: 'progress', tracksDone })),
  );
  t.strictSame(
    events.at(-1),
    { event: 'progress', tracksDone: 100, secondsLeft: 0 },
    'from a second on it is known how fast it goes',
  );
  t.end();
});

t.test('progress tells the rate, and the time that is left, from a second on', (t) => {
  const { output, clock, complained } = makeOutput();
  const at = (done: number): void =>
    output.progress({ title: 'Copying', done, total: 1000, bytes: done * 1_048_576, event: {} });
  at(0);
  clock.advance(500);
  at(100);
  clock.advance(1500);
  at(200);
  clock.advance(8000);
  at(300);
  t.strictSame(complained().trim().split('\n'), [
    'Copying: 10 %',
    'Copying: 20 %, 100 MiB/s, 8 s left',
    'Copying: 30 %, 30 MiB/s, 23 s left',
  ]);
  t.end();
});

t.test('progress elsewhere is a line at every tenth, on standard error', (t) => {
  const { output, printed, complained } = makeOutput();
  for (let done = 0; done <= 100; done += 5) output.progress(step(done));
  output.progress(step(100));
  const lines = complained().trim().split('\n');
  t.equal(lines.length, 10);
  t.equal(lines[0], 'Backing up: 10 %');
  t.equal(lines.at(-1), 'Backing up: 100 %');
  output.progress(step(50, 'Another'));
  t.equal(complained(), 'Another: 50 %\n');
  t.equal(printed(), '');
  t.end();
});

t.test('progress on a terminal is a bar that goes away', (t) => {
  const { output, printed, complained } = makeOutput({ terminal: true });
  output.progress(step(1));
  output.progress(step(50));
  output.report({ event: 'x' }, 'done with it');
  t.match(complained(), /Backing up \[/);
  t.equal(printed(), 'done with it\n');
  t.end();
});

t.test('tables and descriptions are aligned', (t) => {
  t.strictSame(table(['A', 'LONG'], [['wide cell', '1']]), ['A          LONG', 'wide cell  1']);
  t.strictSame(
    describe({
      sizeBytes: 65_536,
      createdMs: 0,
      freezeMs: 3,
      gone: undefined,
      list: [],
      isOn: true,
      poisoned: null,
    }),
    [
      'size:      64 KiB',
      'created:   1970-01-01T00:00:00.000Z',
      'freeze ms: 3',
      'list: none',
      'is on:     yes',
      'poisoned:  none',
    ],
  );
  t.strictSame(describe({ bytesUsed: 65_536, bytesMax: 131_072, oldestMs: 0, keepLogMs: 172_800_000 }), [
    'bytes used: 64 KiB',
    'bytes max:  128 KiB',
    'oldest:     1970-01-01T00:00:00.000Z',
    'keep log:   48h',
  ]);
  t.strictSame(describe({ sessions: [{ id: 'x' }], chain: ['a', 'b'], inner: { a: 1 } }), [
    'sessions:',
    '  id: x',
    'chain:',
    '  a',
    '  b',
    'inner:',
    '  a: 1',
  ]);
  t.end();
});
