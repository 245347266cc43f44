/**
 * Goal: `backup --store s a b` and `snapshot create n a b` are of one instant, served or not.
 *
 * Method: one client writes counter i to volume a and flushes it, then i to volume b, and so on. At any one instant a
 * has what b has, or one more; so has whatever was kept of the two.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import t, { type Test } from 'tap';
import { must, mustCowbell, Running } from './support/process.ts';
import { PYTHON, requirePython } from './support/python.ts';
import { eventsOf, startServer } from './support/served.ts';
import { requireTools } from './support/tools.ts';
import { makePair, uriOf } from './support/volume-pair.ts';

const WRITER = `
import nbd, os, struct, sys
a, b = nbd.NBD(), nbd.NBD()
a.connect_uri(sys.argv[1])
b.connect_uri(sys.argv[2])
stop, i = sys.argv[3], 0
while not os.path.exists(stop):
    i += 1
    for h in (a, b):
        h.pwrite(struct.pack('<Q', i) + bytes(504), 0)
        h.pwrite(struct.pack('<Q', i) + bytes(504), (i % 64) * 65536 + 65536)
        h.flush()
    if i == 1:
        print('writing', flush=True)
print(i)
`;

function counterIn(path: string): number {
  return Number(readFileSync(path).readBigUInt64LE(0));
}

/** Both kept counters; a may be ahead of b by one. */
function assertOneInstant(t: Test, [a = 0, b = 0]: readonly number[], what: string): void {
  t.ok(a > 0 && a - b >= 0 && a - b <= 1, `${what}: a has ${a}, b has ${b}`);
}

t.test('of one instant under load', async (t) => {
  if (!requireTools(t, ['nbdcopy']) || !(await requirePython(t))) return;
  const { at, a, b } = await makePair(t, '8M');
  const { server } = await startServer(t, [a, b]);
  const writer = new Running(PYTHON, ['-c', WRITER, uriOf(a, 'a'), uriOf(b, 'b'), at('stop')]);
  await writer.waitForLine(/writing/);
  const restored = async (stdout: string): Promise<readonly number[]> => {
    const sets = eventsOf(stdout).filter(({ event }) => event === 'set');
    t.match(sets, [{ volume: 'a' }, { volume: 'b' }]);
    const counters: number[] = [];
    for (const { set } of sets) {
      await mustCowbell(['restore', at('store'), String(set), at(`${String(set)}.raw`)]);
      counters.push(counterIn(at(`${String(set)}.raw`)));
    }
    return counters;
  };
  const backup = ['--json', 'backup', '--store', at('store')];
  for (const round of [1, 2]) {
    const name = `s${round}`;
    const stdout = await mustCowbell([...backup, a, b]);
    assertOneInstant(t, await restored(stdout), `backup ${round}`);
    const made = eventsOf(await mustCowbell(['--json', 'snapshot', 'create', name, a, b]));
    t.match(made, [{ volume: 'a', name }, { volume: 'b', name }, { event: 'done' }]);
    t.equal(made[0]?.['freezeMs'], made[1]?.['freezeMs'], 'one freeze');
    await must('nbdcopy', [uriOf(a, `a@${name}`), at('a.raw')]);
    await must('nbdcopy', [uriOf(b, `b@${name}`), at('b.raw')]);
    assertOneInstant(t, [counterIn(at('a.raw')), counterIn(at('b.raw'))], `snapshot ${round}`);
  }
  // The snapshots' sets, of the instant they were made, while the volumes go on.
  assertOneInstant(
    t,
    await restored(await mustCowbell([...backup, `${a}@s2`, `${b}@s2`])),
    'backup of snapshots',
  );
  t.equal(writer.ended, undefined, 'it still wrote');
  writeFileSync(at('stop'), '');
  t.equal((await writer.wait()).status, 0);
  t.equal((await server.stop()).status, 0);

  assertOneInstant(t, await restored(await mustCowbell([...backup, a, b])), 'offline backup');
  t.match(eventsOf(await mustCowbell(['--json', 'snapshot', 'create', 'rest', b, a])), [
    { volume: 'b', name: 'rest' },
    { volume: 'a', name: 'rest' },
    { event: 'done' },
  ]);
  await mustCowbell(['store', 'verify', at('store')]);
});
