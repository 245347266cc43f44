/**
 * Goal: what runs around the freeze has the freeze alone between its two halves, is waited for, and leaves
 * neither a session nor a container behind when the child dies or the backup is cancelled meanwhile.
 *
 * Method: a real volume on a real file and a real child. The test holds each half, and kills the child in it.
 */

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { kill } from 'node:process';
import t, { type Test } from 'tap';
import { Store } from '../blockset/index.ts';
import { deferred } from '../base/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { builtProgram } from '../sim/index.ts';
import { createVolume, MemoryArea, Volume } from '../volume/index.ts';
import { type BackupOptions, runBackupSession } from './host.ts';

const TRACK = 4096;
const TRACK_COUNT = 16;
const workerPath = builtProgram('session-worker');

class WatchedArea extends MemoryArea {
  isClosed = false;

  override async close(): Promise<void> {
    this.isClosed = true;
    await super.close();
  }
}

async function prepare(t: Test) {
  // Not tap's own directory, which goes before the volume is closed.
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
  for (let track = 0; track < TRACK_COUNT; track += 1) await write(volume, track, 'before');
  const area = new WatchedArea({ sizeBytes: TRACK, trackSizeBytes: TRACK });
  const options = {
    volume,
    storePath,
    level: 'full',
    style: { codec: 'none' },
    areas: [area],
    workerPath,
  } as const;
  const isFree = async (): Promise<boolean> => {
    const request = { consumer: 'c', level: 'full', candidates: [], areas: [] } as const;
    const session = await volume.beginSession(request);
    session.fail(new Error('seen'));
    await session.whenEnded();
    return area.isClosed;
  };
  return { volume, storePath, options, isFree };
}

async function write(volume: Volume, track: number, text: string): Promise<void> {
  await volume.write(Buffer.alloc(TRACK, text), track * TRACK);
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve());
  });
}

t.test('writes go on before the freeze, the copying beside what follows it', async (t) => {
  const { volume, storePath, options } = await prepare(t);
  const copied = deferred();
  let isOver = false;
  const outcome = await runBackupSession({
    ...options,
    onProgress: ({ tracksDone, tracksTotal }) => {
      if (tracksDone === tracksTotal) copied.resolve();
    },
    aroundFreeze: async (freeze) => {
      await write(volume, 0, 'while the first half runs');
      await volume.flush();
      t.same(volume.status().sessions, []);
      await freeze();
      await write(volume, 0, 'after the freeze');
      // Never, if the child had to wait for this half.
      await copied.promise;
      isOver = true;
    },
  });
  t.ok(isOver, 'the backup ends after both halves');
  const store = await Store.open(storePath);
  const chain = await store.chain(outcome.set);
  t.match(chain.readTrack(0)?.toString('latin1'), /^while the first half runs/);
  t.match(chain.readTrack(1)?.toString('latin1'), /^before/);
  await chain.close();
});

t.test('what is thrown before the freeze is what the backup fails with', async (t) => {
  const { options, isFree } = await prepare(t);
  const error = new Error('not now');
  const backup = runBackupSession({
    ...options,
    aroundFreeze: async () => {
      throw error;
    },
  });
  t.equal(await backup.catch((thrown: unknown) => thrown), error);
  t.ok(await isFree());
});

/** Runs a backup whose child is killed, or which is cancelled, before, in or after the freeze. */
async function interrupted(
  t: Test,
  { at, how }: { readonly at: 'before' | 'in' | 'after'; readonly how: 'killed' | 'cancelled' },
): Promise<void> {
  const { volume, options, isFree } = await prepare(t);
  const abort = new AbortController();
  let pid: number | undefined;
  const events: string[] = [];
  const interrupt = async (over: AbortSignal): Promise<void> => {
    if (how === 'cancelled') abort.abort();
    else if (pid !== undefined) kill(pid, 'SIGKILL');
    await aborted(over);
    events.push('told');
  };
  const aroundFreeze: BackupOptions['aroundFreeze'] = async (freeze, over) => {
    if (at === 'before') await interrupt(over);
    if (at === 'in') {
      const begin = volume.beginSession.bind(volume);
      volume.beginSession = async (request) => {
        volume.beginSession = begin;
        const session = await begin(request);
        await interrupt(over);
        return session;
      };
    }
    try {
      await freeze();
      events.push('frozen');
      if (at === 'after') await interrupt(over);
    } finally {
      // What follows the freeze takes longer than the child's end does.
      await new Promise((resolve) => setImmediate(resolve));
      events.push('ended');
    }
  };
  const backup = runBackupSession({
    ...options,
    signal: abort.signal,
    onChild: (child) => {
      pid = child;
    },
    aroundFreeze,
  });
  await t.rejects(backup, { code: how === 'killed' ? 'worker-died' : 'cancelled' });
  const expected = {
    before: ['told', 'ended'],
    in: ['told', 'frozen', 'ended'],
    after: ['frozen', 'told', 'ended'],
  };
  t.strictSame(events, expected[at]);
  t.ok(await isFree(), 'the volume is free, the container closed');
}

// Not every pair, since each starts a child.
t.test('killed before the freeze', (t) => interrupted(t, { at: 'before', how: 'killed' }));
t.test('killed in the freeze', (t) => interrupted(t, { at: 'in', how: 'killed' }));
t.test('cancelled before the freeze', (t) => interrupted(t, { at: 'before', how: 'cancelled' }));
t.test('cancelled after the freeze', (t) => interrupted(t, { at: 'after', how: 'cancelled' }));
