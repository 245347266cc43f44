/**
 * Goal: a layout is what was asked for or refused with the place and the reason; members that are there are used as they
 * are and never beyond what was given; what is known of a member at an opening is never more than what is true. Method: a
 * table of mistakes; real files, since pieces, inodes and times are theirs; volumes over devices in memory where a member
 * must go away.
 */

import {
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { KIB, SeededRandom, systemCode } from '../base/index.ts';
import { DeviceRegistry } from '../device/index.ts';
import { LossyDisk } from '../sim/index.ts';
import {
  checkVolume,
  createVolume,
  describeLayout,
  homePlaces,
  layoutOf,
  parseLayoutFile,
  Volume,
} from './index.ts';
import type { LayoutRequest } from './layout.ts';
import {
  Disks,
  layoutFor,
  makeLaidOut,
  makeParent,
  memberStates,
  rebuildAll,
  TRACK_BYTES,
} from './layout.fixture.ts';

const SIZE = 256 * KIB;

/** A message that an error has; what it has besides is looked at by its code. */
async function refusalOf(perform: () => Promise<unknown>): Promise<string> {
  try {
    await perform();
  } catch (error) {
    return `${systemCode(error)}: ${error instanceof Error ? error.message : ''}`;
  }
  return 'not refused';
}

const FILE = {
  format: 'cowbell-layout',
  version: 0,
  extents: [
    { kind: 'mirror', length: '128K', members: ['/srv/a', 'nbd://box/b'] },
    { kind: 'stripe', stripe: '64K', members: ['c@4K+64K', '/srv/d'] },
  ],
};

t.test('the example of FORMAT.md', (t) => {
  const layout = parseLayoutFile(JSON.stringify(FILE), 'l.json', (place) =>
    place === 'c@4K+64K' ? '/x/c@4K+64K' : place,
  );
  t.strictSame(layout, {
    extents: [
      { kind: 'mirror', members: [{ place: '/srv/a' }, { place: 'nbd://box/b' }], lengthBytes: 128 * KIB },
      { kind: 'stripe', members: [{ place: '/x/c@4K+64K' }, { place: '/srv/d' }], stripeBytes: 64 * KIB },
    ],
  });
  t.equal(describeLayout(layout), 'layout:mirror of /srv/a, nbd://box/b + stripe of /x/c@4K+64K, /srv/d');
  t.strictSame(homePlaces({ home: 'x', layout }), ['/srv/a', 'nbd://box/b', '/x/c@4K+64K', '/srv/d']);
  t.end();
});

t.test('each mistake in a file is named by file, place and value', async (t) => {
  const [mirror] = FILE.extents;
  const extent = (change: object): object => ({ extents: [{ ...mirror, ...change }] });
  const cases: readonly (readonly [object, string])[] = [
    [{ format: 'x' }, 'format is "x", wanted "cowbell-layout"'],
    [{ version: 1 }, 'version is 1, wanted 0'],
    [{ more: 1 }, 'the document.more is 1, wanted only format, version, extents'],
    [{ extents: 7 }, 'extents is 7, wanted a list'],
    [{ extents: [] }, 'extents has 0 of them, wanted 1 to 256'],
    [{ extents: ['x'] }, 'extents[0] is "x", wanted an object'],
    [extent({ kind: 'raid' }), 'extents[0].kind is "raid", wanted plain, stripe, mirror'],
    [extent({ size: 1 }), 'extents[0].size is 1, wanted only kind, length, stripe, members'],
    [
      extent({ length: 'long' }),
      'extents[0].length is "long", wanted a size such as "10G" or a number of bytes',
    ],
    [extent({ length: 1000 }), 'extents[0].length is 1000, wanted a multiple of 4096 bytes'],
    [extent({ stripe: '4K' }), 'extents[0].stripe is 4096, wanted it for stripes only'],
    [extent({ kind: 'stripe', stripe: 5000 }), 'extents[0].stripe is 5000, wanted a multiple of 4096 bytes'],
    [extent({ members: ['/a'] }), 'extents[0].members has 1 of them, wanted 2 to 16 for mirror'],
    [extent({ kind: 'plain' }), 'extents[0].members has 2 of them, wanted just one for plain'],
    [extent({ members: ['/a', 3] }), 'extents[0].members[1] is 3, wanted a path or a URI'],
    [
      extent({ members: ['/a', '/b@0+0'] }),
      'extents[0].members[1] is no place: Device "/b@0+0" names a piece of 0 bytes, wanted more',
    ],
    [
      extent({ members: ['/a', '/b@512+4K'] }),
      'extents[0].members[1] has an offset or length of 512, wanted a multiple of 4096 bytes',
    ],
  ];
  for (const [change, message] of cases) {
    const text = JSON.stringify({ ...FILE, ...change });
    const refusal = await refusalOf(async () => parseLayoutFile(text, 'l.json', (place) => place));
    t.equal(refusal, `bad-layout: l.json: ${message}`);
  }
  t.match(
    await refusalOf(async () => parseLayoutFile('{', 'l.json', (place) => place)),
    /^bad-layout: l.json: the document is no JSON/,
  );
});

function registry(): DeviceRegistry {
  return new DeviceRegistry();
}

interface Place {
  readonly at: (name: string) => string;
  readonly create: (layout: LayoutRequest, sizeBytes?: number, name?: string) => Promise<unknown>;
  readonly open: (name?: string) => Promise<Volume>;
  readonly warnings: string[];
}

/** A directory for a volume `v` and its members. */
async function makePlace(t: Test): Promise<Place> {
  const parent = await makeParent(t);
  const at = (name: string): string => join(parent, name);
  const warnings: string[] = [];
  return {
    at,
    warnings,
    create: (layout, sizeBytes = SIZE, name = 'v') =>
      createVolume(at(name), { sizeBytes, trackSizeBytes: TRACK_BYTES, layout, registry: registry() }),
    open: async (name = 'v') => {
      const volume = await Volume.open(at(name), {
        registry: registry(),
        activity: 'testing',
        intentRegionTracks: 2,
        onWarning: (sentence) => warnings.push(sentence),
      });
      t.teardown(() => volume.close().catch(() => undefined));
      return volume;
    },
  };
}

t.test('files that are not there are made as large as is needed', async (t) => {
  const { at, create } = await makePlace(t);
  await create({
    extents: [
      { kind: 'plain', members: [{ place: `${at('a')}@8K+16K` }] },
      {
        kind: 'stripe',
        stripeBytes: 4 * KIB,
        lengthBytes: 20 * KIB,
        members: [{ place: at('b') }, { place: at('c') }],
      },
      { kind: 'mirror', members: [{ place: at('d') }, { place: `${at('a')}@24K+256K` }] },
    ],
  });
  const sizes = ['a', 'b', 'c', 'd'].map((name) => statSync(at(name)).size / KIB);
  t.strictSame(sizes, [280, 12, 8, 256 - 36]);
});

t.test('what cannot be is refused when the volume is made, and nothing is left', async (t) => {
  const { at, create } = await makePlace(t);
  writeFileSync(at('there'), Buffer.alloc(64 * KIB));
  mkdirSync(at('directory'));
  const plain = (place: string): LayoutRequest['extents'][number] => ({
    kind: 'plain',
    members: [{ place }],
  });
  const cases: readonly (readonly [LayoutRequest, RegExp])[] = [
    [layoutOf('concat', [at('new'), at('other')]), /^bad-layout: .*extents\[0\].length is missing/],
    [
      layoutOf('concat', [at('there'), at('there')]),
      /^bad-layout: .*extents\[1\].members\[0\] is .*there, which has bytes of extents\[0\].members\[0\]/,
    ],
    [layoutOf('mirror', [`${at('new')}@0+256K`, `${at('new')}@252K+256K`]), /wanted pieces apart$/],
    [
      layoutOf('mirror', [at('new'), at('there')]),
      /extents\[0\].members\[1\] is .*there with 65536 bytes, wanted at least 262144$/,
    ],
    [
      layoutOf('mirror', [at('new'), `${at('n2')}@0+64K`]),
      /members\[1\] is .* with 65536 bytes, wanted at least 262144$/,
    ],
    [
      { extents: [{ ...plain(at('new')), lengthBytes: SIZE }, plain(at('n2'))] },
      /extents\[1\] begins where the volume of 262144 bytes has ended$/,
    ],
    [
      { extents: [{ ...plain(at('new')), lengthBytes: 4 * KIB }] },
      /extents\[0\].length is 4096, wanted 262144, the rest of the volume$/,
    ],
    [layoutOf('mirror', [at('new'), at('directory')]), /^not-a-device: /],
    [layoutOf('mirror', [at('new'), 'ftp://x/y']), /^unknown-scheme: /],
  ];
  for (const [layout, message] of cases) t.match(await refusalOf(() => create(layout)), message);
  t.notOk(existsSync(at('v')) || existsSync(at('new')) || existsSync(at('n2')), 'nothing is left');
  t.equal(
    await refusalOf(() => create({ extents: [] })),
    'bad-layout: the layout: extents has 0 of them, wanted 1 to 256',
  );
});

t.test(
  'a piece that another volume has is refused when a volume is made, and when it is opened',
  async (t) => {
    const { at, create, open } = await makePlace(t);
    writeFileSync(at('disk'), Buffer.alloc(1024 * KIB));
    await create({ extents: [{ kind: 'plain', members: [{ place: `${at('disk')}@0+256K` }] }] });
    const overlapping: LayoutRequest = {
      extents: [{ kind: 'plain', members: [{ place: `${at('disk')}@128K+256K` }] }],
    };
    await create(overlapping, SIZE, 'w');
    await create(
      { extents: [{ kind: 'plain', members: [{ place: `${at('disk')}@512K+256K` }] }] },
      SIZE,
      'x',
    );
    await open();
    t.match(
      await refusalOf(() => create(overlapping, SIZE, 'y')),
      /^busy: .*disk@131072\+262144 is locked by another user/,
    );
    t.match(await refusalOf(() => open('w')), /^busy: /);
    await open('x');
    t.pass('a piece beside it is not');
  },
);

t.test('of members that were there the first counts, and the others are made equal to it', async (t) => {
  const { at, create, open } = await makePlace(t);
  writeFileSync(at('b'), Buffer.alloc(SIZE, 0x62));
  writeFileSync(at('c'), Buffer.alloc(SIZE, 0x63));
  await create(layoutOf('mirror', [at('a'), at('b'), at('c')]));
  const volume = await open();
  t.strictSame(memberStates(volume), ['rebuilding', 'in-sync', 'rebuilding']);
  const found = Buffer.alloc(TRACK_BYTES);
  await volume.read(found, 0);
  t.equal(found[0], 0x62);
  await rebuildAll(volume);
  await volume.close();
  for (const name of ['a', 'b', 'c']) t.ok(readFileSync(at(name)).equals(Buffer.alloc(SIZE, 0x62)), name);
});

t.test('a member that was replaced or changed behind the volume’s back gets everything', async (t) => {
  for (const [how, harm] of [
    ['another file', (path: string) => (truncateSync(path, 0), renameOver(path))],
    ['written to', (path: string) => (writeFileSync(path, Buffer.alloc(SIZE, 0x77)), utimesSync(path, 1, 1))],
    ['cut short', (path: string) => truncateSync(path, 8 * KIB)],
  ] as const) {
    const { at, create, open, warnings } = await makePlace(t);
    await create(layoutOf('mirror', [at('a'), at('b')]));
    const before = await open();
    await before.write(Buffer.alloc(SIZE, 0x21), 0);
    await before.close();
    harm(at('b'));
    const volume = await open();
    t.strictSame(memberStates(volume), ['in-sync', how === 'cut short' ? 'away' : 'rebuilding'], how);
    t.equal(warnings.length, 1, 'it is said');
    t.equal(volume.startedClean, true, 'the volume itself is as it was');
    await rebuildAll(volume);
    t.strictSame(memberStates(volume), ['in-sync', 'in-sync']);
    await volume.close();
    t.ok(readFileSync(at('b')).equals(Buffer.alloc(SIZE, 0x21)), `${how}: it has everything`);
  }
});

function renameOver(path: string): void {
  writeFileSync(`${path}.new`, Buffer.alloc(SIZE, 0x55));
  // The old one stays, so that its inode is not used again.
  renameSync(path, `${path}.old`);
  renameSync(`${path}.new`, path);
}

t.test('where all members were changed the first counts, and everything counts as changed', async (t) => {
  const { at, create, open } = await makePlace(t);
  await create(layoutOf('mirror', [at('a'), at('b')]));
  const before = await open();
  await before.createSnapshot('s');
  const { point } = before.snapshots()[0] ?? { point: '' };
  await before.close();
  for (const [name, byte] of [
    ['a', 1],
    ['b', 2],
  ] as const)
    writeFileSync(at(name), Buffer.alloc(SIZE, byte));
  const volume = await open();
  t.strictSame(memberStates(volume), ['in-sync', 'rebuilding']);
  t.equal(volume.startedClean, false);
  t.equal(volume.changedSince(point).size, SIZE / TRACK_BYTES);
  await rebuildAll(volume);
  await volume.close();
  t.equal(readFileSync(at('b'))[0], 1);
});

t.test('after a clean stop a member that was away gets what it missed and nothing else', async (t) => {
  const disks = new Disks();
  for (const name of ['a', 'b']) disks.add(name, SIZE);
  const directory = join(await makeParent(t), 'v');
  const laidOut = await makeLaidOut(t, {
    disks,
    layout: layoutFor('mirror', 'mem:a', 'mem:b'),
    sizeBytes: SIZE,
    directory,
  });
  await rebuildAll(laidOut.volume);
  await laidOut.volume.flush();
  disks.get('b').goAway();
  await laidOut.volume.write(Buffer.alloc(TRACK_BYTES, 1), 5 * TRACK_BYTES);
  await laidOut.volume.createSnapshot('s');
  await laidOut.volume.write(Buffer.alloc(TRACK_BYTES, 2), 9 * TRACK_BYTES);
  await laidOut.reopen();
  disks.get('b').comeBack();
  const volume = await laidOut.reopen();
  const [part] = volume.status().parts ?? [];
  t.match(part?.members[1], { state: 'rebuilding', missingTracks: 2 });
  await rebuildAll(volume);
  const written = disks
    .get('b')
    .faulty.operations.filter(({ kind }) => kind === 'write')
    .map(({ offsetBytes }) => offsetBytes / TRACK_BYTES);
  t.strictSame(written, [5, 9]);
});

t.test('a volume with a layout grows where its last part can', async (t) => {
  const { at, create, open } = await makePlace(t);
  await create({
    extents: [
      { kind: 'plain', members: [{ place: `${at('a')}@0+64K` }] },
      { kind: 'mirror', members: [{ place: at('b') }, { place: at('c') }] },
    ],
  });
  const volume = await open();
  await volume.write(Buffer.alloc(SIZE, 7), 0);
  await volume.grow(2 * SIZE);
  await volume.write(Buffer.alloc(TRACK_BYTES, 8), 2 * SIZE - TRACK_BYTES);
  await volume.close();
  t.strictSame(
    ['a', 'b', 'c'].map((name) => statSync(at(name)).size / KIB),
    [64, 448, 448],
  );
  t.ok(readFileSync(at('b')).equals(readFileSync(at('c'))));
  const again = await open();
  t.equal(again.sizeBytes, 2 * SIZE);
  await again.close();
  await create({ extents: [{ kind: 'plain', members: [{ place: `${at('d')}@0+256K` }] }] }, SIZE, 'fixed');
  const fixed = await open('fixed');
  t.match(
    await refusalOf(() => fixed.grow(2 * SIZE)),
    /^too-small: .* has 262144 bytes, wanted at least 524288$/,
  );
  t.equal(fixed.sizeBytes, SIZE);
});

t.test('a check reads every copy', async (t) => {
  const { at, create, open } = await makePlace(t);
  await create(layoutOf('mirror', [at('a'), at('b')]));
  await (await open()).close();
  const check = async (): Promise<readonly string[]> => {
    const { findings } = await checkVolume(at('v'), { registry: registry(), dryRun: true });
    return findings.map(({ where, severity }) => `${severity} ${where.replace(/\/.*\//, '')}`);
  };
  t.strictSame(await check(), []);
  renameSync(at('b'), at('elsewhere'));
  t.strictSame(await check(), ['note mirror member b']);
  renameSync(at('a'), at('gone'));
  t.match(await check(), [/^damage home layout:mirror of/]);
});

t.test('snapshots by clone and a layout do not go together', async (t) => {
  const { at } = await makePlace(t);
  const layout = layoutOf('mirror', [at('a'), at('b')]);
  const made = createVolume(at('v'), {
    sizeBytes: SIZE,
    trackSizeBytes: TRACK_BYTES,
    layout,
    registry: registry(),
    snapshotBy: 'clone',
  });
  await t.rejects(made, { code: 'cannot-clone' });
  t.notOk(existsSync(at('a')), 'nothing is left');
});

/**
 * The order that everything hangs on: that a member is away is durable before anything is acknowledged that only the
 * others have. The first member is the one that fails: after a crash it would be the one that counts.
 */
t.test('a power cut never makes a member current that lacks what was flushed', async (t) => {
  for (let seed = 1; seed <= 8; seed += 1) {
    const disks = new Disks();
    for (const name of ['a', 'b']) disks.add(name, SIZE);
    const directory = join(await makeParent(t), 'v');
    const laidOut = await makeLaidOut(t, {
      disks,
      layout: layoutFor('mirror', 'mem:a', 'mem:b'),
      sizeBytes: SIZE,
      directory,
    });
    await rebuildAll(laidOut.volume);
    await laidOut.volume.write(Buffer.alloc(SIZE, 1), 0);
    await laidOut.volume.flush();
    const held: (() => void)[] = [];
    let isHolding = false;
    const lossy = new LossyDisk(directory, {
      onEvent: (event, when) => {
        const isState = event.kind === 'file' && event.name === 'volume-state' && when === 'before';
        if (!isState || !isHolding) return undefined;
        return new Promise((resolve) => held.push(() => resolve(undefined)));
      },
    });
    isHolding = true;
    disks.get('a').faulty.fail({ kind: 'write' });
    let isFlushed = false;
    const flushed = (async () => {
      await laidOut.volume.write(Buffer.alloc(TRACK_BYTES, 2), 0);
      await laidOut.volume.flush();
      isFlushed = true;
    })().catch(() => undefined);
    for (let turn = 0; turn < 20; turn += 1) await new Promise((resolve) => setImmediate(resolve));
    const wasFlushed = isFlushed;
    lossy.powerCut(new SeededRandom(seed));
    lossy.close();
    isHolding = false;
    for (const release of held) release();
    await flushed;
    await disks.get('b').faulty.powerCut(new SeededRandom(seed));
    for (const name of ['a', 'b']) disks.get(name).goAway();
    await laidOut.volume.close().catch(() => undefined);
    for (const name of ['a', 'b']) {
      disks.get(name).comeBack();
      disks.get(name).locks.clear();
    }
    laidOut.volume = await laidOut.open();
    const found = Buffer.alloc(TRACK_BYTES);
    await laidOut.volume.read(found, 0);
    t.equal(wasFlushed, false, 'nothing is acknowledged before the record is durable');
    t.ok(!wasFlushed || found[0] === 2, `seed ${seed}: what was acknowledged is there`);
    await laidOut.volume.close();
  }
});
