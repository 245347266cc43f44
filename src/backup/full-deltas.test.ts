/**
 * Goal: a delta store that is full holds writes up and nothing else; a backup makes room, also where logs were to be kept
 * for longer, since these are in a set.
 *
 * Method: the real volume, backup and store, with a delta store of as little room as there may be.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { LIMITS } from '../base/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { labelsOf, TEST_TRACK_BYTES, writeLabel } from '../sim/index.ts';
import { createVolume, MemoryArea, Volume } from '../volume/index.ts';
import { backUp } from './index.ts';
import { LocalSource, makeTestStore } from './session.fixture.ts';

const TRACK_COUNT = 8;
const KEEP_MS = 48 * 3_600_000;

for (const keepLogMs of [0, KEEP_MS]) {
  const kept = keepLogMs === 0 ? 'none is kept' : 'they are to be kept for two days';
  t.test(`a backup makes room for writes that wait, where of the logs ${kept}`, async (t) => {
    const root = mkdtempSync(join(tmpdir(), 'cowbell-full-'));
    t.teardown(() => rmSync(root, { recursive: true, force: true }));
    const directory = join(root, 'v');
    const bytesMax = LIMITS.deltaSegmentBytesMin * LIMITS.deltaSegmentCountMin;
    await createVolume(directory, {
      sizeBytes: TRACK_COUNT * TEST_TRACK_BYTES,
      trackSizeBytes: TEST_TRACK_BYTES,
      deltas: { places: [{ place: join(root, 'd'), bytesMax }], keepLogMs },
    });
    const warnings: string[] = [];
    const volume = await Volume.open(directory, {
      registry: new DeviceRegistry(),
      activity: 'testing',
      onWarning: (sentence) => warnings.push(sentence),
    });
    const store = await makeTestStore(t);
    let waiting: Promise<void> | undefined;
    let count = 0;
    // One after the other, until one waits.
    while (waiting === undefined && count < (2 * bytesMax) / TEST_TRACK_BYTES) {
      count += 1;
      const write = writeLabel(volume, count % TRACK_COUNT, `a${count}`);
      if (!(await isDoneUnlessFull(volume, write))) waiting = write;
    }
    t.ok(waiting !== undefined, `write ${count} waits`);
    t.equal((await labelsOf(volume))[(count - 1) % TRACK_COUNT], `a${count - 1}`, 'reads go on');
    const area = new MemoryArea({ sizeBytes: TEST_TRACK_BYTES, trackSizeBytes: TEST_TRACK_BYTES });
    const source = new LocalSource({ volume, areas: [area] });
    await backUp({ source, store, level: 'full', codec: 'none' });
    await volume.tend(new AbortController().signal);
    await waiting;
    t.equal((await labelsOf(volume))[count % TRACK_COUNT], `a${count}`);
    const isTold = warnings.some((sentence) => sentence.includes('before their time'));
    t.equal(isTold, keepLogMs > 0, warnings.join('; '));
    await volume.close();
  });
}

/** False where the write waits and there is no room; for a moment it may wait for a file that is being made. */
async function isDoneUnlessFull(volume: Volume, write: Promise<void>): Promise<boolean> {
  let isDone = false;
  const done = write.then(() => {
    isDone = true;
  });
  for (let turns = 0; turns < 500; turns += 1) {
    await new Promise((resolve) => setImmediate(resolve));
    if (isDone) return true;
    const { writesWaiting, deltas } = volume.status();
    const leftBytes = (deltas?.bytesMax ?? 0) - (deltas?.bytesUsed ?? 0);
    if (writesWaiting === 0 || leftBytes > LIMITS.deltaSegmentBytesMin) turns = 0;
  }
  done.catch(() => undefined);
  return false;
}
