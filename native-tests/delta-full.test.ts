/**
 * Goal: a delta store without room makes writes wait, and nothing but writes: reads and flushes are answered, a backup
 * runs, gives the room back, and the writes go on; a server that is stopped meanwhile ends, and nothing that was
 * acknowledged is lost.
 *
 * Method: a volume that is larger than what its one member may take, and a client that writes all of it, held in a model.
 * In the end the home is deleted, and rebuilt.
 */
import { randomBytes } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { NbdClient } from '../src/nbd/index.ts';
import { must, mustCowbell, type Running, temporaryDirectory } from './support/process.ts';
import { MIB, until } from './support/recovering.ts';
import { backUp, startServer, statusOf } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const SIZE_BYTES = 12 * MIB;
const WRITE_BYTES = 65_536;
const DEPTH = 4;

interface World {
  readonly at: (name: string) => string;
  readonly volume: string;
  readonly store: string;
  readonly server: Running;
  readonly uri: string;
  /** What was acknowledged. */
  readonly model: Buffer;
}

async function start(t: Test): Promise<World> {
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const [volume, store] = [at('vol'), at('store')];
  const words = ['--size', String(SIZE_BYTES), '--home', at('home.raw'), '--delta', at('d1')];
  await mustCowbell(['volume', 'create', volume, ...words, '--delta-size', '6M']);
  await mustCowbell(['store', 'init', store]);
  const { server, uri } = await startServer(t, [volume]);
  return { at, volume, store, server, uri, model: Buffer.alloc(SIZE_BYTES) };
}

/** Writes all of the volume, some at once; `isDone` when all is acknowledged and flushed. */
class WriteAll {
  readonly done: Promise<void>;
  /** Writes that were sent and not answered when the connection was lost: they may be there. */
  readonly open = new Map<number, Buffer>();
  acknowledged = 0;
  isDone = false;

  constructor(client: NbdClient, model: Buffer) {
    let next = 0;
    const lane = async (): Promise<void> => {
      while (next < SIZE_BYTES) {
        const offset = next;
        const content = randomBytes(WRITE_BYTES);
        next += WRITE_BYTES;
        this.open.set(offset, content);
        await client.write(content, offset);
        this.open.delete(offset);
        content.copy(model, offset);
        this.acknowledged += 1;
      }
    };
    this.done = Promise.all(Array.from({ length: DEPTH }, lane))
      .then(() => client.flush())
      .then(() => {
        this.isDone = true;
      });
    this.done.catch(() => undefined); // Whoever waits for it is told.
  }
}

/** How many writes wait for room, as `status` says. */
async function waiting(volume: string): Promise<number> {
  const deltas = (await statusOf(volume))['deltas'];
  return Number(typeof deltas === 'object' && deltas !== null && Reflect.get(deltas, 'writesWaiting'));
}

async function untilWaiting(t: Test, volume: string, writes: WriteAll): Promise<void> {
  await until('waiting or done', async () => writes.isDone || (await waiting(volume)) > 0);
  if (writes.isDone) return;
  t.comment(`${writes.acknowledged} writes acknowledged, ${await waiting(volume)} wait`);
}

/** Nothing waits but writes, of other clients neither. */
async function assertReads(t: Test, { uri, model }: World, client: NbdClient, lost = 0): Promise<void> {
  const other = await NbdClient.connect(uri);
  for (const reader of [client, other]) {
    const found = Buffer.alloc(WRITE_BYTES);
    await reader.read(found, lost);
    t.ok(found.equals(model.subarray(lost, lost + WRITE_BYTES)), 'reads are answered');
  }
  await other.flush();
  await other.disconnect();
}

async function assertRebuilt(t: Test, { at, volume, store }: World, isExpected: (found: Buffer) => boolean) {
  rmSync(at('home.raw'));
  await mustCowbell(['volume', 'rebuild', volume, '--store', store]);
  t.ok(isExpected(readFileSync(at('home.raw'))), 'the rebuilt home has all that was acknowledged');
}

void t.test('writes wait for room, and a backup makes it', async (t) => {
  if (!requireTools(t, ['cmp'])) return;
  const world = await start(t);
  const { at, volume, store, server, uri, model } = world;
  for (const round of [1, 2]) {
    const client = await NbdClient.connect(uri);
    const writes = new WriteAll(client, model);
    let backups = 0;
    for (;;) {
      await untilWaiting(t, volume, writes);
      if (writes.isDone) break;
      const { acknowledged } = writes;
      await assertReads(t, world, client);
      t.equal(writes.acknowledged, acknowledged, 'and writes wait');
      const set = await backUp(volume, store);
      t.match(set, { level: round === 1 && backups === 0 ? 'full' : 'incremental' });
      backups += 1;
      await until('going on', () => writes.acknowledged > acknowledged);
    }
    await writes.done;
    t.ok(backups > 0, `round ${round}: ${backups} backups`);
    await client.disconnect();
  }
  t.match(await statusOf(volume), { deltas: { members: [{ state: 'healthy' }] } });
  t.equal((await server.stop('SIGKILL')).signal, 'SIGKILL');
  writeFileSync(at('model.raw'), model);
  await must('cmp', [at('home.raw'), at('model.raw')]);
  await assertRebuilt(t, world, (found) => found.equals(model));
});

void t.test('a server is stopped while writes wait', async (t) => {
  const world = await start(t);
  const { volume, store, server, uri, model } = world;
  await backUp(volume, store);
  const client = await NbdClient.connect(uri);
  const writes = new WriteAll(client, model);
  await untilWaiting(t, volume, writes);
  t.notOk(writes.isDone);
  await client.flush();
  t.equal((await server.stop()).status, 0);
  await t.rejects(writes.done);
  const isThere = (found: Buffer): boolean => {
    for (const [offset, content] of writes.open) {
      // Never acknowledged: either is right.
      const there = found.subarray(offset, offset + WRITE_BYTES);
      if (there.equals(content)) content.copy(model, offset);
    }
    return found.equals(model);
  };
  await assertRebuilt(t, world, isThere);

  // The member has no room from the beginning.
  const again = await startServer(t, [volume]);
  await backUp(volume, store);
  const next = await NbdClient.connect(again.uri);
  await next.write(randomBytes(WRITE_BYTES), 0);
  await next.disconnect();
  t.equal((await again.server.stop()).status, 0);
});
