/**
 * Goal: a session's child that dies at any moment is a failed session and nothing else: the volume goes on, every
 * writer goes on, what the store shows is whole, and the next backup is exact.
 *
 * Method: real children on a real file, killed with SIGKILL at their start or after so many writes since the
 * freeze. Only a few, since a child takes long to start; the same deaths in one process, many times:
 * `model.test.ts`. `COWBELL_SEED=n` gives other moments.
 */

import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { env, kill } from 'node:process';
import t from 'tap';
import { runBackupSession, type SetOutcome } from '../backup/index.ts';
import { deferred, SeededRandom, systemCode } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { createVolume, MemoryArea, Volume } from '../volume/index.ts';
import { AskedClock } from './asked-clock.ts';
import { builtProgram } from './built-program.ts';
import { contentOf, type ModelImage, ModelVolume, SECTOR_BYTES } from './model.ts';
import { contentOfChain } from './model-content.ts';
import { turns, within } from './scheduler.ts';
import { makeScratchDirectory } from './scratch.ts';

const SEED = Number(env['COWBELL_SEED'] ?? 1);
const TRACK_BYTES = 4096;
const SIZE_BYTES = 256 * TRACK_BYTES;
const WRITES_IN_FLIGHT_MAX = 16;
const workerPath = builtProgram('session-worker');

/** When a child is killed: at once, or after so many writes since the freeze. */
type Death = 'at its start' | number;

class Victim {
  readonly random = new SeededRandom(SEED);
  readonly model = new ModelVolume(SIZE_BYTES);
  readonly images = new Map<string, ModelImage>();
  readonly clock = new AskedClock(this.model);
  readonly parent = makeScratchDirectory();
  readonly writes = new Set<Promise<void>>();

  get storePath(): string {
    return join(this.parent, 's');
  }

  async open(): Promise<Volume> {
    const directory = join(this.parent, 'v');
    await createVolume(directory, { sizeBytes: SIZE_BYTES, trackSizeBytes: TRACK_BYTES });
    return Volume.open(directory, {
      registry: new DeviceRegistry(),
      clock: this.clock,
      activity: 'losing children',
    });
  }

  write(volume: Volume): void {
    const { model, random } = this;
    const count = 1 + random.below(24);
    const first = random.below(model.sectorCount - count + 1);
    const values = model.newValues(count);
    const change = model.begin(first, values);
    const perform = async (): Promise<void> => {
      await volume.write(contentOf(values), first * SECTOR_BYTES);
      model.finish(change);
    };
    const done = perform().finally(() => this.writes.delete(done));
    this.writes.add(done);
  }

  /** Backs up, writes from the freeze on, and kills the child after so many writes. */
  async backUp(volume: Volume, death?: Death): Promise<SetOutcome> {
    const areaBytes = this.random.pick([0, 8]) * TRACK_BYTES;
    const child: { pid?: number } = {};
    const progress = { isOver: false };
    const begun = deferred();
    const session = runBackupSession({
      volume,
      storePath: this.storePath,
      level: 'auto',
      style: { codec: this.random.pick(['none', 'zstd']) },
      areas: [new MemoryArea({ sizeBytes: areaBytes, trackSizeBytes: TRACK_BYTES })],
      workerPath,
      onChild: (pid) => {
        child.pid = pid;
        if (death === 'at its start') kill(pid, 'SIGKILL');
      },
      onBegun: ({ plan }) => {
        this.images.set(plan.point, this.clock.image);
        begun.resolve();
      },
    }).finally(() => {
      progress.isOver = true;
    });
    session.catch(() => undefined);
    await Promise.race([begun.promise, session.catch(() => undefined)]);
    for (let written = 0; !progress.isOver; written += 1) {
      if (this.writes.size < WRITES_IN_FLIGHT_MAX) this.write(volume);
      await turns(1);
      if (written === death && child.pid !== undefined) kill(child.pid, 'SIGKILL');
    }
    return session;
  }

  /** What is wrong with a set that shows. */
  async mismatchOf(store: Store, set: string, point: string): Promise<string | undefined> {
    const chain = await store.chain(set);
    try {
      return this.images.get(point)?.mismatch(contentOfChain(chain));
    } finally {
      await chain.close();
    }
  }
}

t.test(`the volume outlives its children, seed ${SEED}`, async (t) => {
  const victim = new Victim();
  t.teardown(() => rm(victim.parent, { recursive: true, force: true }));
  const store = await Store.init(victim.storePath);
  const volume = await victim.open();
  t.teardown(() => volume.close());
  for (let count = 0; count < 200; count += 1) victim.write(volume);
  await Promise.all(victim.writes);
  await victim.backUp(volume);
  const deaths: readonly Death[] = ['at its start', 0, victim.random.below(20), victim.random.below(300)];
  let deathCount = 0;
  for (const death of deaths) {
    try {
      await victim.backUp(volume, death);
      t.comment(`The child to be killed after ${death} writes was done before`);
    } catch (error) {
      t.equal(systemCode(error), 'worker-died', `killed: ${death}`);
      deathCount += 1;
    }
    await within(Promise.all(victim.writes), 'A write');
    t.same(volume.sessions, [], 'no session is left');
    t.equal(volume.status().writesWaiting, 0);
    for (const set of await (await Store.open(store.path)).list()) {
      t.equal(set.damage, undefined);
      t.equal(
        await victim.mismatchOf(store, set.id, set.header?.point ?? ''),
        undefined,
        'what shows is whole',
      );
    }
  }
  t.ok(deathCount > 2, `${deathCount} children died`);
  const { set, point } = await victim.backUp(volume);
  t.equal(await victim.mismatchOf(store, set, point), undefined, 'the next backup is exact');
  await Promise.all(victim.writes);
});
