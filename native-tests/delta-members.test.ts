/**
 * Goal: a member of the delta store that fails while the volume is served costs that copy and nothing else, is told, and is
 * made anew once it can be: then it alone, with the store, gives back the home.
 *
 * Method: two members, the second on a small filesystem that is filled up first; then a file stands in place of its
 * directory. Writes go on all the time, held in a model. In the end the server is killed, the home and the first member are
 * deleted, and the volume is rebuilt.
 */
import { randomBytes } from 'node:crypto';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { NbdClient } from '../src/nbd/index.ts';
import { cowbell, must, mustCowbell, temporaryDirectory } from './support/process.ts';
import { MIB, until } from './support/recovering.ts';
import { backUp, startServer, statusOf } from './support/served.ts';
import { SmallDisk } from './support/small-disk.ts';
import { requireTools } from './support/tools.ts';

const SIZE_MIB = 16;
const WRITE_BYTES = 65_536;
/** Some segments of a log: each has a sixteenth of what the member may take. */
const DELTA_SIZE = '64M';
const LOSS_MIB_MAX = 32;

/** What `status` says of a member. */
async function memberOf(volume: string, place: string): Promise<Readonly<Record<string, unknown>>> {
  const deltas = (await statusOf(volume))['deltas'];
  const members: unknown = typeof deltas === 'object' && deltas !== null && Reflect.get(deltas, 'members');
  const found = Array.isArray(members) ? members.find((member) => member?.place === place) : undefined;
  if (found === undefined) throw new Error(`Status of ${volume} says nothing of ${place}`);
  return { ...found };
}

/** Whole random blocks anywhere, flushed. */
class Writer {
  readonly model = Buffer.alloc(SIZE_MIB * MIB);
  readonly #client: NbdClient;
  #next = 0;

  constructor(client: NbdClient) {
    this.#client = client;
  }

  async write(mib: number): Promise<void> {
    for (let count = (mib * MIB) / WRITE_BYTES; count > 0; count -= 1) {
      const content = randomBytes(WRITE_BYTES);
      const offset = this.#next;
      this.#next = (this.#next + 37 * WRITE_BYTES) % this.model.length;
      await this.#client.write(content, offset);
      content.copy(this.model, offset);
    }
    await this.#client.flush();
  }

  async disconnect(): Promise<void> {
    await this.#client.disconnect();
  }
}

interface World {
  readonly volume: string;
  readonly places: readonly [home: string, d1: string, d2: string];
  readonly writer: Writer;
}

/** Writes until the second member is lost, and holds against that what is said. */
async function assertLost(t: Test, { volume, places, writer }: World, reason: RegExp): Promise<void> {
  const [home, d1, d2] = places;
  let written = 0;
  for (; written < LOSS_MIB_MAX && (await memberOf(volume, d2))['state'] !== 'lost'; written += 2)
    await writer.write(2);
  t.match(await memberOf(volume, d2), { state: 'lost', reason }, `lost within ${written} MiB`);
  t.match(await memberOf(volume, d1), { state: 'healthy' });
  t.match(await statusOf(volume), { copies: { notBackedUp: { count: 2, where: [home, d1] } } });
  const check = await cowbell(['status', '--check', volume]);
  t.equal(check.status, 1);
  t.match(check.stdout, /^problem: Member of the delta store \S+ is lost/m);
  await writer.write(2);
}

/** Goes on writing until the second member is healthy again. */
async function assertAnew(t: Test, { volume, places, writer }: World): Promise<void> {
  await until('made anew', async () => {
    await writer.write(0.125);
    return (await memberOf(volume, places[2]))['state'] === 'healthy';
  });
  t.match(await statusOf(volume), { copies: { notBackedUp: { count: 3, where: [...places] } } });
  t.equal((await cowbell(['status', '--check', volume])).status, 0);
}

void t.test('a member is lost and made anew, twice, and then all but it is lost', async (t) => {
  if (!requireTools(t, ['cmp'])) return;
  const directory = temporaryDirectory(t);
  const at = (name: string): string => join(directory, name);
  const disk = await SmallDisk.mount(t, at('disk'), '96M');
  if (disk === undefined) return;
  const [volume, store] = [at('vol'), at('store')];
  const [home, d1, d2] = [at('home.raw'), at('d1'), at('disk/d2')];
  const create = ['volume', 'create', volume, '--size', `${SIZE_MIB}M`, '--home', home];
  await mustCowbell([...create, '--delta', d1, '--delta', d2, '--delta-size', DELTA_SIZE]);
  await mustCowbell(['store', 'init', store]);
  const { server, uri } = await startServer(t, [volume]);
  const writer = new Writer(await NbdClient.connect(uri));
  const world: World = { volume, places: [home, d1, d2], writer };
  await writer.write(4);
  await backUp(volume, store);
  await writer.write(4);
  t.equal((await cowbell(['status', '--check', volume])).status, 0);

  disk.fill(0);
  await assertLost(t, world, /space/i);
  disk.free();
  await assertAnew(t, world);

  rmSync(d2, { recursive: true });
  writeFileSync(d2, 'in the way');
  // Before its segment is full, and though nothing is written.
  await until('seen to be gone', async () => (await memberOf(volume, d2))['state'] === 'lost');
  await assertLost(t, world, /d2/);
  rmSync(d2);
  mkdirSync(d2);
  await assertAnew(t, world);

  await writer.write(4);
  t.equal((await server.stop('SIGKILL')).signal, 'SIGKILL');
  rmSync(home);
  rmSync(d1, { recursive: true });
  await mustCowbell(['volume', 'rebuild', volume, '--store', store, '--delta', d2]);
  writeFileSync(at('model.raw'), writer.model);
  await must('cmp', [home, at('model.raw')]);
  t.pass('all that was flushed is in the home that was rebuilt from the re-made member');
});
