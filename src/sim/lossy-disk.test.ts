/**
 * Goal: after a cut the tree holds what the syncs made sure of, and of the rest everything that a disk may or may
 * not hold is seen for some seed. Method: small trees; each case is built anew and cut for many seeds, and the
 * set of all outcomes is compared with what it must be exactly.
 */

import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { noteCommit, SeededRandom, syncDirectory, syncFile, syncPath, tryLock } from '../base/index.ts';
import { openLmdb } from '../records/index.ts';
import { LossyDisk, type LossyDiskOptions } from './lossy-disk.ts';

interface World {
  readonly root: string;
  readonly disk: LossyDisk;
  /** The path of a name in the root. */
  readonly at: (name: string) => string;
}

/** Builds a tree, changes it under the lossy disk, cuts, and describes what is left; once for each seed. */
async function outcomes(
  t: Test,
  before: (at: World['at']) => void,
  change: (world: World) => Promise<void> | void,
  options: LossyDiskOptions = {},
  seedCount = 40,
): Promise<string[]> {
  const seen = new Set<string>();
  const parent = t.testdir();
  for (let seed = 0; seed < seedCount; seed += 1) {
    const root = mkdtempSync(join(parent, 'tree-'));
    const at = (name: string): string => join(root, name);
    before(at);
    const disk = new LossyDisk(root, options);
    try {
      await change({ root, disk, at });
      disk.powerCut(new SeededRandom(seed));
      seen.add(describe(root));
    } finally {
      disk.close();
    }
  }
  t.same(
    readdirSync(parent).filter((name) => name.startsWith('.lossy')),
    [],
    'nothing is left beside the tree',
  );
  return [...seen].sort();
}

/** `a=content b=content d/ d/c=content`. */
function describe(root: string, prefix = ''): string {
  const parts: string[] = [];
  for (const entry of readdirSync(root, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = join(root, entry.name);
    if (!entry.isDirectory()) parts.push(`${prefix}${entry.name}=${readFileSync(path, 'utf8')}`);
    else parts.push(`${prefix}${entry.name}/`, describe(path, `${prefix}${entry.name}/`));
  }
  return parts.filter((part) => part !== '').join(' ');
}

const nothing = (): void => undefined;

t.test('what was there at the start survives, what was written without a sync does not', async (t) => {
  const left = await outcomes(
    t,
    (at) => {
      writeFileSync(at('a'), 'old');
      writeFileSync(at('b'), 'old');
    },
    async ({ at }) => {
      writeFileSync(at('a'), 'unsynced');
      writeFileSync(at('b'), 'synced');
      await syncPath('home', at('b'));
      writeFileSync(at('b'), 'later');
    },
  );
  t.same(left, ['a=old b=synced']);
});

t.test('a sync covers what was written before it was issued, not before it finished', async (t) => {
  const left = await outcomes(
    t,
    (at) => writeFileSync(at('a'), '0'),
    async ({ at }) => {
      const descriptor = openSync(at('a'), 'r+');
      writeSync(descriptor, '1', 0);
      const sync = syncFile('home', descriptor, at('a'));
      writeSync(descriptor, '2', 0);
      await sync;
      closeSync(descriptor);
    },
  );
  t.same(left, ['a=1']);
});

t.test('later commits may survive, earlier ones than the sync do not', async (t) => {
  const commit = (path: string, content: string): void => {
    writeFileSync(path, content);
    noteCommit(path);
  };
  const left = await outcomes(
    t,
    (at) => writeFileSync(at('db'), '0'),
    async ({ at }) => {
      commit(at('db'), '1');
      commit(at('db'), '2');
      await syncPath('volume-state', at('db'));
      commit(at('db'), '3');
      commit(at('db'), '4');
      writeFileSync(at('db'), 'torn');
    },
  );
  t.same(left, ['db=2', 'db=3', 'db=4']);

  const bounded = await outcomes(
    t,
    (at) => writeFileSync(at('db'), '0'),
    ({ at }) => {
      for (const content of ['1', '2', '3', '4', '5']) commit(at('db'), content);
    },
    { commitCountMax: 2 },
  );
  t.same(bounded, ['db=0', 'db=4', 'db=5'], 'the newest are kept');
});

t.test('a file that was never synced is absent or empty, with a durable name empty', async (t) => {
  const create = ({ at }: World): void => writeFileSync(at('new'), 'content');
  t.same(await outcomes(t, nothing, create), ['', 'new=']);
  const named = await outcomes(t, nothing, async (world) => {
    create(world);
    await syncDirectory('volume-directory', world.root);
  });
  t.same(named, ['new=']);
  const both = await outcomes(t, nothing, async (world) => {
    create(world);
    await syncPath('home-create', world.at('new'));
    await syncDirectory('volume-directory', world.root);
  });
  t.same(both, ['new=content']);
});

t.test('a rename shows the old or the new name, durable with the directory', async (t) => {
  const replace = async ({ at }: World): Promise<void> => {
    writeFileSync(at('a.partial'), 'new');
    await syncPath('set-seal', at('a.partial'));
    renameSync(at('a.partial'), at('a'));
  };
  const start = (at: World['at']): void => writeFileSync(at('a'), 'old');
  t.same(await outcomes(t, start, replace), ['a=new', 'a=old']);
  const synced = await outcomes(t, start, async (world) => {
    await replace(world);
    await syncDirectory('set-directory', world.root);
  });
  t.same(synced, ['a=new']);

  const moved = await outcomes(
    t,
    (at) => writeFileSync(at('a'), '1'),
    ({ at }) => renameSync(at('a'), at('b')),
  );
  t.same(moved, ['a=1', 'b=1'], 'never both, never neither');

  const two = await outcomes(
    t,
    (at) => {
      writeFileSync(at('a'), '1');
      writeFileSync(at('b'), '2');
    },
    ({ at }) => {
      renameSync(at('a'), at('c'));
      renameSync(at('b'), at('d'));
    },
  );
  t.same(two, ['a=1 b=2', 'a=1 d=2', 'b=2 c=1', 'c=1 d=2'], 'two renames have no order');
});

t.test('renames through the same name are kept or undone together', async (t) => {
  const left = await outcomes(
    t,
    (at) => {
      writeFileSync(at('a'), 'old');
      writeFileSync(at('b'), 'new');
    },
    ({ at }) => {
      renameSync(at('a'), at('kept'));
      renameSync(at('b'), at('a'));
    },
  );
  t.same(left, ['a=new kept=old', 'a=old b=new'], 'no file has two names or none');
});

t.test('a rename of an unsynced file leaves an empty one', async (t) => {
  const left = await outcomes(
    t,
    (at) => writeFileSync(at('a'), 'old'),
    async ({ at, root }) => {
      writeFileSync(at('a.partial'), 'new');
      renameSync(at('a.partial'), at('a'));
      await syncDirectory('set-directory', root);
    },
  );
  t.same(left, ['a=']);
});

t.test('a removal may come back until its directory is synced', async (t) => {
  const start = (at: World['at']): void => writeFileSync(at('a'), 'old');
  t.same(await outcomes(t, start, ({ at }) => rmSync(at('a'))), ['', 'a=old']);
  const synced = await outcomes(t, start, async ({ at, root }) => {
    rmSync(at('a'));
    await syncDirectory('store-directory', root);
  });
  t.same(synced, ['']);
  const replaced = await outcomes(t, start, async ({ at }) => {
    rmSync(at('a'));
    writeFileSync(at('a'), 'new');
    await syncPath('home', at('a'));
  });
  t.same(replaced, ['a=new', 'a=old']);
});

t.test('directories come and go with the names in their parents', async (t) => {
  const make = async ({ at }: World): Promise<void> => {
    mkdirSync(at('d'));
    writeFileSync(at('d/x'), 'content');
    await syncPath('set-data', at('d/x'));
  };
  t.same(await outcomes(t, nothing, make), ['', 'd/', 'd/ d/x=content']);
  const inner = await outcomes(t, nothing, async (world) => {
    await make(world);
    await syncDirectory('set-directory', world.at('d'));
  });
  t.same(inner, ['', 'd/ d/x=content'], 'syncing the inner directory does not make its own name durable');
  const outer = await outcomes(t, nothing, async (world) => {
    await make(world);
    await syncDirectory('store-directory', world.root);
  });
  t.same(outer, ['d/', 'd/ d/x=content']);

  const start = (at: World['at']): void => {
    mkdirSync(at('d'));
    mkdirSync(at('d/e'));
    writeFileSync(at('d/e/x'), '1');
  };
  t.same(await outcomes(t, start, ({ at }) => rmSync(at('d'), { recursive: true })), [
    '',
    'd/',
    'd/ d/e/',
    'd/ d/e/ d/e/x=1',
  ]);
  t.same(await outcomes(t, start, ({ at }) => renameSync(at('d'), at('f'))), [
    'd/ d/e/ d/e/x=1',
    'f/ f/e/ f/e/x=1',
  ]);
});

t.test('directories keep their inodes, files are detached from whoever has them open', (t) => {
  const root = t.testdir({ volume: { d: { lock: '', home: 'old' } } });
  const at = (name: string): string => join(root, 'volume', name);
  const disk = new LossyDisk(join(root, 'volume'));
  t.teardown(() => disk.close());
  const before = ['.', 'd'].map((name) => statSync(at(name)).ino);
  const lock = openSync(at('d/lock'), 'r+');
  const home = openSync(at('d/home'), 'r+');
  t.equal(tryLock(lock, 'exclusive'), true);
  disk.powerCut(new SeededRandom(1));
  writeSync(home, 'NEW', 0);
  t.equal(readFileSync(at('d/home'), 'utf8'), 'old', 'a killed process writes nothing');
  const again = openSync(at('d/lock'), 'r+');
  t.equal(tryLock(again, 'exclusive'), true, 'a killed process holds no lock');
  t.same(
    ['.', 'd'].map((name) => statSync(at(name)).ino),
    before,
  );
  for (const descriptor of [lock, home, again]) closeSync(descriptor);
  t.end();
});

t.test('files can keep inodes and times', async (t) => {
  const root = t.testdir({ volume: { same: 'old', other: 'old' } });
  const at = (name: string): string => join(root, 'volume', name);
  const disk = new LossyDisk(join(root, 'volume'), { keepInodes: true });
  t.teardown(() => disk.close());
  const before = ['same', 'other'].map((name) => statSync(at(name), { bigint: true }));
  writeFileSync(at('other'), 'longer content');
  disk.powerCut(new SeededRandom(1));
  const after = ['same', 'other'].map((name) => statSync(at(name), { bigint: true }));
  t.same(
    after.map((stat) => stat.ino),
    before.map((stat) => stat.ino),
  );
  t.equal(after[0]?.mtimeNs, before[0]?.mtimeNs);
  t.equal(readFileSync(at('other'), 'utf8'), 'old');
  t.equal(statSync(at('other')).mtimeMs.toFixed(1), (Number(before[1]?.mtimeNs) / 1e6).toFixed(1));
});

t.test('a sync can be made a no-op, or fail once, and is counted', async (t) => {
  const root = t.testdir({ volume: { a: '0' } });
  const path = join(root, 'volume', 'a');
  const disk = new LossyDisk(join(root, 'volume'));
  t.teardown(() => disk.close());

  disk.disable('home');
  writeFileSync(path, '1');
  await syncPath('home', path);
  disk.powerCut(new SeededRandom(1));
  t.equal(readFileSync(path, 'utf8'), '0', 'the disabled sync made nothing durable');

  disk.enable('home');
  disk.failOnce('home', 'EIO');
  writeFileSync(path, '2');
  await t.rejects(syncPath('home', path), { code: 'EIO', message: /injected/ });
  await syncPath('home-create', join(root, 'volume', 'a'));
  disk.powerCut(new SeededRandom(1));
  t.equal(readFileSync(path, 'utf8'), '0', 'what a failed sync gave up, a later one does not bring back');

  writeFileSync(path, '3');
  await syncPath('home', path);
  disk.powerCut(new SeededRandom(1));
  t.equal(readFileSync(path, 'utf8'), '3', 'it fails only once, and cuts may follow each other');
  t.same(
    [...disk.counts],
    [
      ['home', 3],
      ['home-create', 1],
    ],
  );
});

t.test('a torn file holds whole pages, old or new', async (t) => {
  const page = (byte: string): string => byte.repeat(4096);
  const left = await outcomes(
    t,
    (at) => {
      writeFileSync(at('home'), page('a') + page('b'));
      writeFileSync(at('other'), 'x');
    },
    ({ at }) => {
      writeFileSync(at('home'), page('A') + page('B'));
      writeFileSync(at('other'), 'y');
    },
    { tear: (path) => path === 'home' },
  );
  t.same(
    left.map((text) => text.replaceAll(/(\w)\1{4095}/g, '$1')),
    ['home=AB other=x', 'home=Ab other=x', 'home=aB other=x', 'home=ab other=x'],
  );
});

t.test('LMDB opens after any cut, at its synced commit or a later one', async (t) => {
  const root = t.testdir({ volume: {} });
  const path = join(root, 'volume', 'state');
  const setup = openLmdb(path, { create: true });
  setup.database('d');
  await setup.sync('volume-state');
  await setup.close();
  const seen = new Set<string>();
  for (let seed = 0; seed < 25; seed += 1) {
    const disk = new LossyDisk(join(root, 'volume'));
    const file = openLmdb(path);
    const database = file.database('d');
    const commit = (value: string): void => {
      file.transaction(() => database.put('key', Buffer.from(value)));
    };
    commit('1');
    await file.sync('volume-state');
    commit('2');
    commit('3');
    disk.powerCut(new SeededRandom(seed));
    t.equal(existsSync(`${path}-lock`), false);
    await file.close();
    const reopened = openLmdb(path);
    seen.add(reopened.database('d').get('key')?.toString() ?? 'none');
    await reopened.close();
    disk.close();
  }
  t.same([...seen].sort(), ['1', '2', '3']);
});

t.test('the same seed leaves the same tree', async (t) => {
  const change = async ({ at }: World): Promise<void> => {
    for (const name of ['a', 'b', 'c', 'd', 'e', 'f']) {
      writeFileSync(at(name), name);
      await syncPath('set-data', at(name));
      renameSync(at(name), at(`${name}2`));
    }
  };
  const first = await outcomes(t, nothing, change, {}, 1);
  t.same(await outcomes(t, nothing, change, {}, 1), first);
});
