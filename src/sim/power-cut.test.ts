/**
 * Goal: whenever the power is cut, what was acknowledged is there when it is back, and nothing shows that was not
 * complete (promises 2 to 5 and 7 of DESIGN section 4); and every sync that the code issues is needed for that.
 *
 * Method: one scenario over a volume, a store and a restore (`power-cut.ts`) on a lossy disk. It is cut at each of
 * its events, with another seed each time, and all promises are checked. Then, for each sync by itself, the sync
 * is made a no-op and lives are cut until a promise breaks: a sync without which none does would be useless, or
 * what it is for is not checked. `COWBELL_SEED=n` gives other cuts.
 */

import { copyFileSync, readdirSync, rmSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { env } from 'node:process';
import { join } from 'node:path';
import t from 'tap';
import { SeededRandom, type SyncName } from '../base/index.ts';
import { Store } from '../blockset/index.ts';
import { LossyDisk } from './lossy-disk.ts';
import { contentOf } from './model.ts';
import { live } from './power-cut.ts';
import type { Breach } from './promises.ts';
import { makeScratchDirectory } from './scratch.ts';

const SEED = Number(env['COWBELL_SEED'] ?? 1);
const LIVES_MAX = 400;
const NEVER = Number.POSITIVE_INFINITY;

/** Where a cut shows that a sync is missing, and how often that comes in a life; anywhere for the others. */
const TELLING: Readonly<Record<string, { readonly event: string; readonly times: number }>> = {
  'set-data': { event: 'before set-seal', times: 3 },
  'restore-target': { event: 'the end', times: 1 },
};

t.test(`a cut at any event breaks no promise, seed ${SEED}`, async (t) => {
  const whole = await live({ seed: SEED, cutAt: NEVER });
  t.equal(whole.broken, undefined, 'nor does one after everything');
  const broken: string[] = [];
  for (let cutAt = 1; cutAt <= whole.events.length; cutAt += 1) {
    const seed = SEED * 10_000 + cutAt;
    const life = await live({ seed, cutAt });
    if (life.broken !== undefined)
      broken.push(`seed ${seed}, cut at ${cutAt} (${life.events.at(-1)}): ${life.broken.message}`);
  }
  t.same(broken, []);
  t.comment(`${whole.events.length} events`);
});

t.test(`without any one sync some cut breaks a promise, seed ${SEED}`, async (t) => {
  const { events } = await live({ seed: SEED, cutAt: NEVER });
  const before = 'before ';
  const syncs = new Set(
    events.filter((event) => event.startsWith(before)).map((event) => event.slice(before.length)),
  );
  const names = new Set([...syncs].map((sync) => sync.split(' ')[0]));
  const wanted: readonly SyncName[] = [
    'home',
    'home-create',
    'volume-state',
    'volume-directory',
    'intent-log-create',
    'intent-log',
    'snapshot-store',
    'snapshot-directory',
    'set-data',
    'set-seal',
    'set-directory',
    'catalog',
    'store-directory',
    'restore-target',
  ];
  t.same(names, new Set(wanted), 'the scenario meets every sync');
  for (const without of syncs) {
    // A segment that lost its beginning means that everything changed: without this sync nothing breaks, and the
    // backup after a crash is never a small one.
    if (without.startsWith('intent-log-create')) continue;
    const telling = TELLING[without.split(' ')[0] ?? ''];
    const random = new SeededRandom(SEED);
    let broken: Breach | undefined;
    let lives = 0;
    while (broken === undefined && lives < LIVES_MAX) {
      lives += 1;
      const cutAt =
        telling === undefined
          ? 1 + random.below(events.length)
          : { event: telling.event, nth: 1 + random.below(telling.times) };
      ({ broken } = await live({ seed: SEED * 10_000 + lives, cutAt, without }));
    }
    t.ok(broken !== undefined, `${without}: after ${lives} lives, ${broken?.message ?? 'nothing broke'}`);
  }
});

/** A session was killed after its seal was written and before it was synced; the page cache has the seal. */
async function sealAndKill(store: Store, away: string): Promise<string> {
  const writer = await store.createSet({
    volumeId: 'f'.repeat(32),
    volumeName: 'v',
    level: 'full',
    base: null,
    point: 'e'.repeat(32),
    sizeBytes: 4096,
    trackSizeBytes: 4096,
    codec: 'none',
  });
  const partial = join(store.path, 'sets', `${writer.id}-0.cbs.partial`);
  writer.add(0, contentOf([1, 2, 3, 4, 5, 6, 7, 8]));
  await writer.finish({ bytesRead: 4096, diverted: 0, unchanged: 0 });
  await t.rejects(writer.seal(), 'killed');
  // What an error would clean up, a kill leaves.
  copyFileSync(partial, away);
  await writer.abort();
  copyFileSync(away, partial);
  rmSync(away);
  return writer.id;
}

/** How many of the cuts lose a set that was shown. */
async function cutsThatLose(without: SyncName | undefined): Promise<number> {
  let lost = 0;
  for (let seed = 1; seed <= 12; seed += 1) {
    const parent = makeScratchDirectory();
    const root = join(parent, 'disk');
    await mkdir(root);
    let isKilled = false;
    const disk = new LossyDisk(root, {
      onEvent: (event, when) => {
        if (event.kind === 'commit' || event.name !== 'set-seal' || when === 'after' || isKilled)
          return undefined;
        isKilled = true;
        throw new Error('killed');
      },
    });
    try {
      const store = await Store.init(join(root, 's'));
      const id = await sealAndKill(store, join(parent, 'away'));
      if (without !== undefined) disk.disable(without);
      const shown = await (await Store.open(store.path)).list();
      t.same(
        shown.map((set) => set.id),
        [id],
        'a sealed set is finished',
      );
      disk.powerCut(new SeededRandom(seed));
      const left = await (await Store.open(store.path)).list();
      if (left.length !== 1 || left[0]?.damage !== undefined) lost += 1;
      t.ok(readdirSync(parent).length > 0);
    } finally {
      disk.close();
      rmSync(parent, { recursive: true, force: true });
    }
  }
  return lost;
}

t.test('a set that a killed session had sealed stays once it was shown', async (t) => {
  t.equal(await cutsThatLose(undefined), 0);
  t.ok((await cutsThatLose('set-seal')) > 0, 'set-seal is needed when a set is finished at open');
  t.ok((await cutsThatLose('set-directory')) > 0, 'set-directory too');
});
