/**
 * Goal: what delta logs are for is reached by what is typed: `restore --at`, `volume history`, `volume rebuild`; what
 * cannot be is a usage error, and nothing is written over or undone unasked.
 *
 * Method: whole command lines in this process, beside a volume with logs and a store that were really written.
 */

import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import t, { type Test } from 'tap';
import { type Clock, ManualClock, MIB } from '../base/index.ts';
import { backUp } from '../backup/index.ts';
import { LocalSource } from '../backup/session.fixture.ts';
import { Store } from '../blockset/index.ts';
import { createDeviceRegistry } from '../daemon/index.ts';
import { makeScratchDirectory } from '../sim/index.ts';
import { MemoryArea, Volume } from '../volume/index.ts';
import { runCommandLine } from './command-line.ts';

async function cowbell(clock: Clock, directory: string, ...words: readonly string[]) {
  const stdout = new PassThrough().setEncoding('utf8');
  const stderr = new PassThrough().setEncoding('utf8');
  const status = await runCommandLine(words, {
    stdout,
    stderr,
    directory,
    clock,
    signal: new AbortController().signal,
    version: '9.9.9',
    onHangup: () => () => undefined,
    takeHandedSockets: () => [],
    startSupervisor: () => Promise.reject(new Error('nothing is attached here')),
  });
  const read = (stream: PassThrough): string => String(stream.read() ?? '');
  return { status, stdout: read(stdout), stderr: read(stderr) };
}

/** `v` of 1 MiB: a backup, then a good write at noon, and a mistake at one o'clock. */
async function makeWorld(t: Test) {
  const directory = makeScratchDirectory();
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const clock = new ManualClock(Date.parse('2030-01-31T11:00:00Z'));
  const run = (...words: readonly string[]) => cowbell(clock, directory, ...words);
  const created = await run('volume', 'create', 'v', '--size', '1M', '--delta', 'd', '--keep-log', '48h');
  t.equal(created.status, 0, created.stderr);
  const volume = await Volume.open(join(directory, 'v'), {
    registry: createDeviceRegistry(),
    clock,
    activity: 'test',
  });
  const store = await Store.init(join(directory, 's'));
  const trackBytes = volume.geometry.trackSizeBytes;
  await volume.write(Buffer.alloc(trackBytes, 1), 0);
  const area = new MemoryArea({ sizeBytes: trackBytes, trackSizeBytes: trackBytes });
  const source = new LocalSource({ volume, areas: [area] });
  await backUp({ source, store, level: 'full', codec: 'none', runBytesMax: trackBytes });
  clock.advance(3_600_000);
  await volume.write(Buffer.alloc(4096, 2), trackBytes);
  await volume.flush();
  const good = Buffer.alloc(MIB);
  await volume.read(good, 0);
  clock.advance(3_600_000);
  await volume.write(Buffer.alloc(8192, 3), 0);
  await volume.flush();
  const bad = Buffer.alloc(MIB);
  await volume.read(bad, 0);
  return { directory, run, volume, good, bad, home: volume.identity.home };
}

await t.test('restore, history and rebuild', async (t) => {
  const { directory, run, volume, good, bad, home } = await makeWorld(t);
  const history = await run('volume', 'history', 'v', '--from', '2030-01-31T11:30');
  t.equal(history.stderr, '');
  t.match(history.stdout, /2030-01-31T12:00:00.000Z {2}1 write of 4 KiB to 1 track\n/);
  t.match(
    history.stdout,
    /2030-01-31T13:00:00.000Z {2}1 write of 8 KiB to 1 track\n2030-01-31T13:00:00.000Z {2}flush\n/,
  );
  const json = await run('volume', 'history', 'v', '--to', '2030-01-31T12:30', '--json');
  t.match(json.stdout, /"event":"writes".*"writes":1,"bytes":4096,"tracks":1/);

  const at = ['--at', '2030-01-31T12:30'];
  const restored = await run('restore', 's', 'latest:v', 'then.raw', '--delta', 'd', ...at, '--verify');
  t.equal(restored.status, 0, restored.stderr);
  t.ok(readFileSync(join(directory, 'then.raw')).equals(good));
  t.equal((await run('restore', 's', 'latest:v', 'now.raw', '--delta', 'd')).status, 0);
  t.ok(readFileSync(join(directory, 'now.raw')).equals(bad));

  t.match(await run('volume', 'rebuild', 'v', '--store', 's'), { status: 1, stderr: /is in use/ });
  await volume.close();
  const asked = await run('volume', 'rebuild', 'v', '--store', 's', ...at);
  t.match(asked, { status: 2, stdout: /from the delta logs/, stderr: /would be written over .* say --yes/ });
  const undone = await run('volume', 'rebuild', 'v', '--store', 's', ...at, '--home', 'new.raw');
  t.match(undone, { status: 2, stderr: /Later changes of 1 tracks would be undone/ });
  t.notOk(existsSync(join(directory, 'new.raw')));
  rmSync(home);
  const plan = await run('volume', 'rebuild', 'v', '--store', 's', '--dry-run', '--json');
  t.match(plan, { status: 0, stdout: /"event":"blueprint"/ });
  t.notOk(existsSync(home));
  const rebuilt = await run('volume', 'rebuild', 'v', '--store', 's');
  t.match(rebuilt, { status: 0, stdout: /Rebuilt v in .*home.raw/ }, rebuilt.stderr);
  t.ok(readFileSync(home).equals(bad));
  t.equal((await run('volume', 'rebuild', 'v', '--store', 's', ...at, '--yes')).status, 0);
  t.ok(readFileSync(home).equals(good));
});

await t.test('what does not go together is a usage error', async (t) => {
  const { run, volume } = await makeWorld(t);
  await volume.close();
  const cases: readonly (readonly [readonly string[], RegExp])[] = [
    [['restore', 's', 'latest', 'x.raw', '--at', '2030-01-31'], /--at is given without --delta/],
    [['restore', 's', 'latest', 'x.raw', '--delta', 'd', '--at', 'noon'], /--at is 'noon', wanted a time/],
    [['restore', 's', 'latest', 'x.raw', '--delta', 'd', '--resume'], /--resume is of sets alone/],
    [['restore', 's', 'latest', 'x.raw', '--delta', 'd', '--salvage'], /--salvage is of sets alone/],
    [['serve', 'v', '--at', '2030-01-31'], /--at is given without --store/],
    [['recover', 'nbd://h/x', 'live', 'w', '--delta', 'd'], /--delta goes with a set of a store/],
    [['volume', 'history', 'v', '--from', 'x'], /--from is 'x', wanted a time/],
  ];
  for (const [words, pattern] of cases) {
    const { status, stderr } = await run(...words);
    t.equal(status, 2, words.join(' '));
    t.match(stderr, pattern);
  }
});
