/**
 * Goal: a dry run tells what the next backup reads, and changes nothing: no point, no byte in the store. Method: a real
 * volume and a real child; what it says is held against the backup that is taken right after it, and the files of the
 * store against what they were.
 */

import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { Store } from '../blockset/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { builtProgram } from '../sim/index.ts';
import { digest } from '../records/index.ts';
import { createVolume, Volume } from '../volume/index.ts';
import { type DryRunOptions, dryRun } from './dry-run.ts';
import { runBackupSession } from './host.ts';

const TRACK = 4096;
const TRACK_COUNT = 16;
const workerPath = builtProgram('session-worker');

async function prepare(t: Test) {
  const directory = await mkdtemp(join(tmpdir(), 'cowbell-'));
  t.teardown(() => rm(directory, { recursive: true, force: true }));
  const storePath = join(directory, 's');
  await Store.init(storePath);
  await createVolume(join(directory, 'v'), { sizeBytes: TRACK_COUNT * TRACK, trackSizeBytes: TRACK });
  const volume = await Volume.open(join(directory, 'v'), {
    registry: new DeviceRegistry(),
    activity: 'test',
  });
  t.teardown(() => volume.close());
  const ask = (options: Partial<DryRunOptions> = {}) =>
    dryRun({ volume, storePath, level: 'auto', workerPath, ...options });
  const backUp = (snapshot?: string) =>
    runBackupSession({
      volume,
      storePath,
      level: 'auto',
      style: { codec: 'none' },
      areas: [],
      workerPath,
      ...(snapshot === undefined ? {} : { snapshot }),
    });
  let fill = 0;
  const write = async (track: number): Promise<void> => {
    fill += 1;
    await volume.write(Buffer.alloc(TRACK, fill), track * TRACK);
  };
  return { volume, storePath, ask, backUp, write };
}

/** What every file of the store holds. LMDB counts its readers in the lock files. */
async function contents(storePath: string): Promise<string[]> {
  const files = await readdir(storePath, { recursive: true, withFileTypes: true });
  const found: string[] = [];
  for (const file of files) {
    if (!file.isFile() || file.name.endsWith('-lock')) continue;
    const path = join(file.parentPath, file.name);
    found.push(`${path} ${digest(await readFile(path)).toString('hex')}`);
  }
  return found.sort();
}

t.test('what it says is what the backup does, and it changes nothing', async (t) => {
  const { volume, storePath, ask, backUp, write } = await prepare(t);
  for (const track of [0, 1, 9]) await write(track);
  const before = [volume.status(), await contents(storePath)];
  const planned = await ask();
  t.match(planned, { volume: 'v', level: 'full', reason: /no set of this volume yet/, tracks: TRACK_COUNT });
  t.same([volume.status(), await contents(storePath)], before);
  const full = await backUp();
  t.equal(planned.bytes, full.bytesRead);
  t.equal(planned.zeroTracks, TRACK_COUNT - full.bytesRead / TRACK);

  await write(5);
  await write(9);
  const next = await ask();
  t.same(next, {
    volume: 'v',
    level: 'incremental',
    base: full.point,
    reason: undefined,
    tracks: 2,
    zeroTracks: 0,
    bytes: 2 * TRACK,
  });
  const incremental = await backUp();
  t.match(incremental, { level: next.level, base: next.base, tracks: 2, bytesRead: next.bytes });
});

t.test('of a snapshot, and beside a session', async (t) => {
  const { volume, storePath, ask, backUp, write } = await prepare(t);
  await write(1);
  await backUp();
  await write(2);
  await volume.createSnapshot('kept');
  await write(3);
  const { id: consumer } = await Store.open(storePath);
  const session = await volume.beginSession({ consumer, level: 'full', candidates: [], areas: [] });
  t.match(await ask({ snapshot: 'kept' }), { level: 'incremental', tracks: 1 });
  t.match(await ask({ fullEvery: 1 }), { level: 'full', reason: /chain has 1 sets/ });
  session.fail(new Error('seen'));
  await session.whenEnded();
  await t.rejects(ask({ snapshot: 'other' }), { code: 'unknown-snapshot' });
  await volume.deleteSnapshot('kept');
});

t.test('a store that is none is the error that it is', async (t) => {
  const { ask, storePath } = await prepare(t);
  await t.rejects(ask({ storePath: join(storePath, 'sets') }), { message: /is not a store/ });
  await t.rejects(ask({ workerPath: join(storePath, 'no-such-program.js') }), { code: 'worker-died' });
});
