/**
 * Goal: a volume is recovered from a live backup side, the export of another server, which gets every write too: both are
 * equal when it is over and stay so. A mirror that fails is left out, loudly; then writes go on, what is there is read,
 * and what is missing is an error of the reads that need it, never something else and never a wait.
 *
 * Method: the side is a second volume with random content, served by a process of its own, which is killed.
 */
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { NbdClient } from '../src/nbd/index.ts';
import { cowbell } from './support/process.ts';
import {
  loseVolume,
  MIB,
  ModelWriter,
  readFrom,
  readHead,
  recoveryOf,
  startRecovery,
  TRACK_BYTES,
  until,
} from './support/recovering.ts';
import { type Served, serveVolume, startServer, statusOf } from './support/served.ts';

const SIZE_MIB = 16;
const USED_MIB = 12;
const SIZE = SIZE_MIB * MIB;

/** A served volume with random content, which is the backup side. */
async function serveSide(t: Test): Promise<Served & { readonly model: Buffer }> {
  const side = await serveVolume(t, { size: `${SIZE_MIB}M` });
  const model = Buffer.alloc(SIZE);
  randomBytes(USED_MIB * MIB).copy(model);
  const client = await NbdClient.connect(side.uri);
  for (let mib = 0; mib < USED_MIB; mib += 1)
    await client.write(model.subarray(mib * MIB, (mib + 1) * MIB), mib * MIB);
  await client.flush();
  await client.disconnect();
  return { ...side, model };
}

t.test('both get every write, and are equal in the end', async (t) => {
  const { at, uri: side, server: sideServer, model } = await serveSide(t);
  const volume = at('new');
  const words = [side, 'live', volume, '--mirror', side, '--rate', '4M'];
  const recovering = await startRecovery(t, words);
  t.match(recovering.begun, { how: 'created', volume: 'new', set: null });
  t.match(await recoveryOf(volume), { side: { kind: 'device', uri: side }, mirror: side });
  const writer = await ModelWriter.connect(recovering.uri, model);
  t.ok(await writer.agrees(11 * MIB, MIB), 'what is missing is read from the side');
  await writer.write(10 * MIB + 512, 512);
  await writer.write(9 * MIB, 3 * TRACK_BYTES + 4096);
  await writer.zero(8 * MIB + 512, 2 * TRACK_BYTES);
  await writer.write(14 * MIB, 1024);
  t.ok((await readFrom(side, 8 * MIB, 8 * MIB)).equals(model.subarray(8 * MIB)), 'the side has the writes');
  t.ok(Number((await recoveryOf(volume))?.['missingTracks']) > 0, 'while tracks are missing');
  await recovering.server.waitForLine(/"event":"recovered"/);
  await writer.write(5 * MIB + 100 * 512, 4096);
  t.ok((await readFrom(side, 5 * MIB, MIB)).equals(model.subarray(5 * MIB, 6 * MIB)), 'also when it is over');
  await writer.end();
  t.equal((await recovering.server.stop()).status, 0);
  t.equal((await sideServer.stop()).status, 0);
  t.ok(readHead(join(volume, 'home.raw'), SIZE).equals(model), 'the home');
  t.ok(readHead(at('home.raw'), SIZE).equals(model), 'the side');
});

t.test('the recovering server is killed and recovers again', async (t) => {
  const { at, uri: side, server: sideServer, model } = await serveSide(t);
  const volume = at('new');
  const words = [side, 'live', volume, '--mirror', side];
  const first = await startRecovery(t, [...words, '--rate', '1']);
  const writer = await ModelWriter.connect(first.uri, model);
  await writer.write(9 * MIB + 512, 3 * TRACK_BYTES);
  await writer.flush();
  // Acknowledged and not flushed; both have it, and the processes alone are killed.
  await writer.write(7 * MIB, TRACK_BYTES);
  first.server.child.kill('SIGKILL');
  await first.server.wait();
  const again = await startRecovery(t, [...words.slice(0, 3), '--rate', '4M']);
  t.match(again.begun, { how: 'resumed' });
  t.match(await recoveryOf(volume), { mirror: side });
  const next = await ModelWriter.connect(again.uri, model);
  await next.write(2 * MIB, 512);
  await again.server.waitForLine(/"event":"recovered"/);
  await next.end();
  t.equal((await again.server.stop()).status, 0);
  t.equal((await sideServer.stop()).status, 0);
  t.ok(readHead(join(volume, 'home.raw'), SIZE).equals(model), 'the home');
  t.ok(readHead(at('home.raw'), SIZE).equals(model), 'the side');
});

t.test('the side is killed in the middle', async (t) => {
  const { at, uri: side, volume: sideVolume, server: sideServer, model } = await serveSide(t);
  const volume = at('new');
  const recovering = await startRecovery(t, [side, 'live', volume, '--mirror', side, '--rate', '1']);
  const { server, uri } = recovering;
  const writer = await ModelWriter.connect(uri, model);
  await writer.write(9 * MIB, TRACK_BYTES);
  t.ok(await writer.agrees(6 * MIB, MIB));
  sideServer.child.kill('SIGKILL');
  await sideServer.wait();

  const startedMs = performance.now();
  await writer.write(7 * MIB, TRACK_BYTES);
  await writer.write(6 * MIB + 512, 512);
  await writer.flush();
  await until('warned', () => server.stderr.includes('is no longer mirrored'));
  t.match(server.stderr, /^cowbell: Volume new is no longer mirrored to nbd\+unix:\S+: [^\n]+$/m);
  t.match(await recoveryOf(volume), { mirror: side, mirrorLost: String });
  t.ok(await writer.agrees(6 * MIB, MIB), 'what is there is read');
  t.ok(await writer.agrees(7 * MIB, TRACK_BYTES), 'what was written whole too');
  const client = await NbdClient.connect(uri);
  await t.rejects(
    client.read(Buffer.alloc(4096), 8 * MIB),
    { message: /EIO|Cannot read/ },
    'a missing track',
  );
  await t.rejects(client.write(Buffer.alloc(512), 8 * MIB), { message: /EIO|Cannot write/ }, 'a part of one');
  await client.disconnect();
  t.ok(performance.now() - startedMs < 20_000, 'nobody waited for the side');
  await writer.end();
  t.equal((await server.stop()).status, 0);

  const alone = await cowbell(['serve', volume]);
  t.equal(alone.status, 1);
  t.match(
    alone.stderr,
    /^cowbell: Volume new is being recovered from nbd\+unix:\S+, which cannot be used: [^\n]+\n$/,
  );
  const back = await startServer(t, [sideVolume]);
  const again = await startRecovery(t, [side, 'live', volume, '--rate', '4M']);
  t.match(again.begun, { how: 'resumed' });
  t.match(await recoveryOf(volume), { mirrorLost: String });
  const next = await ModelWriter.connect(again.uri, model);
  await next.write(3 * MIB, 512);
  t.notOk(
    (await readFrom(back.uri, 3 * MIB, 512)).equals(model.subarray(3 * MIB, 3 * MIB + 512)),
    'it is a mirror no more',
  );
  await again.server.waitForLine(/"event":"recovered"/);
  await next.end();
  t.match(await statusOf(volume), { served: true });
  t.equal((await again.server.stop()).status, 0);
  t.ok(readHead(join(volume, 'home.raw'), SIZE).equals(model), 'the home holds all that was written');
});

t.test('a store is the side, and an export the mirror', async (t) => {
  const { at, volume, store, model } = await loseVolume(t, { sizeMib: SIZE_MIB, usedMib: USED_MIB });
  const other = await serveVolume(t, { size: `${SIZE_MIB}M` });
  const recovering = await startRecovery(t, [store, 'latest', volume, '--mirror', other.uri]);
  const writer = await ModelWriter.connect(recovering.uri, model);
  await writer.write(4 * MIB, 4096);
  await recovering.server.waitForLine(/"event":"recovered"/);
  t.ok((await readFrom(other.uri, 4 * MIB, 4096)).equals(model.subarray(4 * MIB, 4 * MIB + 4096)));
  other.server.child.kill('SIGKILL');
  await other.server.wait();
  await writer.write(5 * MIB, 4096);
  await until('warned', () => recovering.server.stderr.includes('is no longer mirrored'));
  await writer.end();
  t.equal((await recovering.server.stop()).status, 0);
  t.ok(readHead(at('home.raw'), SIZE).equals(model), 'the home goes on');
});
