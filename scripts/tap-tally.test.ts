/**
 * Goal: the last line of `scripts/test` tells the truth.
 *
 * Method: hand-written TAP as tap's runner prints it, fed in small pieces, counted by hand beside it.
 */
import t from 'tap';
import { TapTally } from './tap-tally.ts';

function tally(text: string): { counts: unknown; events: string[] } {
  const events: string[] = [];
  const taken = new TapTally({
    file: (name, ok, counts) =>
      events.push(`file ${name} ${ok} ${counts.passed + counts.failed + counts.skipped}`),
    failure: (name) => events.push(`failure ${name}`),
    skip: (name, reason) => events.push(`skip ${name}: ${reason}`),
  });
  for (let at = 0; at < text.length; at += 7) taken.write(text.slice(at, at + 7));
  return { counts: taken.finish(), events };
}

void t.test('assertions count, the lines that close subtests and files do not', async (t) => {
  const { counts, events } = tally(`TAP version 14
1..2
# Subtest: a.test.ts
    # Subtest: inner
        ok 1 - x
        not ok 2 - y
          ---
          found: 1
          wanted: 2
          ...
        ok 3 - not run # SKIP missing nbdkit
        1..3
    not ok 1 - inner # time=1ms
    ok 2 - z
    1..2
not ok 1 - a.test.ts # time=3ms
# Subtest: b.test.ts
    ok 1 - v
    1..1
ok 2 - b.test.ts # time=3ms
`);
  t.same(counts, { passed: 3, failed: 1, skipped: 1 });
  t.same(events, [
    'failure a.test.ts > inner > y',
    'skip a.test.ts > inner > not run: missing nbdkit',
    'file a.test.ts false 4',
    'file b.test.ts true 1',
  ]);
});

void t.test('a file that fails with no failing assertion is one failure', async (t) => {
  const { counts, events } = tally(`TAP version 14
1..1
# Subtest: a.test.ts
    ok 1 - x
    1..1
not ok 1 - a.test.ts # time=3ms
  ---
  exitCode: 1
  ...
`);
  t.same(counts, { passed: 1, failed: 1, skipped: 0 });
  t.same(events, ['failure a.test.ts', 'file a.test.ts false 2']);
});

void t.test('a skipped subtest is one skip, and a failure inside is not counted again above', async (t) => {
  const { counts } = tally(`TAP version 14
1..1
# Subtest: a.test.ts
    # Subtest: left out
        1..0
    ok 1 - left out # SKIP not here
    # Subtest: outer
        # Subtest: inner
            not ok 1 - x
            1..1
        not ok 1 - inner
        1..1
    not ok 2 - outer
    1..2
not ok 1 - a.test.ts
`);
  t.same(counts, { passed: 0, failed: 1, skipped: 1 });
});
