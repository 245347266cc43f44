/**
 * What a long chain costs: 200 small incrementals on a full set, against one full set of the same content. Prints how
 * long reading everything takes from each, what they take on the disk, and what pruning to 10 gives back.
 *
 *     bench/chain [--sets 200] [--size-mib 256] [--directory <dir>]
 *
 * Each set changes 1 % of the tracks. Reading is what a restore does without its target: every track through the chain,
 * decompressed and checked against its hash. The page cache is warm; the first run of each is not counted.
 */

import { ARGUMENTS } from './arguments.ts';
import { mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { ManualClock, MIB, SeededRandom } from '../src/base/index.ts';
import { mergeChain, prune, Store } from '../src/blockset/index.ts';

const TRACK_BYTES = 65_536;
const HOUR_MS = 3_600_000;

const { values } = parseArgs({
  args: [...ARGUMENTS],
  options: {
    directory: { type: 'string', default: tmpdir() },
    sets: { type: 'string', default: '200' },
    'size-mib': { type: 'string', default: '256' },
  },
});
const setCount = Number(values.sets);
const trackCount = (Number(values['size-mib']) * MIB) / TRACK_BYTES;
const directory = mkdtempSync(join(values.directory, 'cowbell-chain-'));
const random = new SeededRandom(1);
const clock = new ManualClock();

/** Content that halves when it is compressed. */
function content(): Buffer {
  const bytes = Buffer.alloc(TRACK_BYTES);
  for (let at = 0; at < TRACK_BYTES / 2; at += 4) bytes.writeUInt32LE(random.below(2 ** 32), at);
  return bytes;
}

async function save(store: Store, index: number, tracks: readonly number[]): Promise<void> {
  clock.advance(HOUR_MS);
  const writer = await store.createSet({
    volumeId: 'bench',
    volumeName: 'bench',
    level: index === 0 ? 'full' : 'incremental',
    base: index === 0 ? null : `p${index - 1}`,
    point: `p${index}`,
    sizeBytes: trackCount * TRACK_BYTES,
    trackSizeBytes: TRACK_BYTES,
    codec: 'zstd',
  });
  for (const track of tracks) writer.add(track, content());
  await writer.finish({ bytesRead: 0, diverted: 0, unchanged: 0 });
  await writer.seal();
}

/** Reads everything twice; @returns the seconds of opening and of reading in the second run. */
async function readAll(store: Store): Promise<{ open: number; read: number }> {
  let times = { open: 0, read: 0 };
  for (let run = 0; run < 2; run += 1) {
    const started = performance.now();
    const chain = await store.chain((await store.find('latest')).id);
    const opened = performance.now();
    for (const entry of chain.readPlan(chain.tracks())) chain.readFrame(entry);
    times = { open: (opened - started) / 1000, read: (performance.now() - opened) / 1000 };
    await chain.close();
  }
  return times;
}

function size(store: Store): number {
  const sets = join(store.path, 'sets');
  return readdirSync(sets).reduce((sum, name) => sum + statSync(join(sets, name)).blocks * 512, 0) / MIB;
}

async function report(what: string, store: Store): Promise<void> {
  const { open, read } = await readAll(store);
  const count = (await store.list()).length;
  const rate = (trackCount * TRACK_BYTES) / MIB / read;
  console.log(
    `${what}: ${count} sets, ${size(store).toFixed(1)} MiB on disk, opened in ${open.toFixed(3)} s, read in ${read.toFixed(3)} s (${rate.toFixed(0)} MiB/s)`,
  );
}

async function timed(what: string, work: () => Promise<unknown>): Promise<void> {
  const started = performance.now();
  await work();
  console.log(`${what} took ${((performance.now() - started) / 1000).toFixed(2)} s`);
}

try {
  const store = await Store.init(join(directory, 'store'), { clock });
  await save(
    store,
    0,
    Array.from({ length: trackCount }, (_, track) => track),
  );
  const changed = Math.max(1, Math.round(trackCount / 100));
  for (let index = 1; index <= setCount; index += 1) {
    const tracks = new Set(Array.from({ length: changed }, () => random.below(trackCount)));
    await save(
      store,
      index,
      [...tracks].sort((a, b) => a - b),
    );
  }
  await report('chain', store);
  await timed('pruning to 10', () => prune(store, { policy: { keepLast: 10 } }));
  await report('pruned', store);
  const latest = (await store.find('latest')).id;
  await timed('merging the rest', () => mergeChain(store, latest));
  await report('one full set', store);
} finally {
  rmSync(directory, { recursive: true, force: true });
}
