/**
 * Goal: a copy of a served volume that is written to all the time holds one instant, on a file and on the export of
 * another server; the second one sends what changed and nothing else; a snapshot is copied as it was.
 *
 * Method: a writer goes round the volume and writes the number of its round into one track after the other, each
 * acknowledged before the next. At every instant the volume is so many tracks of one round, then the rest of the round
 * before; a copy that mixes instants is not. Then nothing is written, and qemu-img compares.
 */
import { closeSync, ftruncateSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { NbdClient } from '../src/nbd/index.ts';
import { listening } from './support/listening.ts';
import { must, mustCowbell, Running } from './support/process.ts';
import { eventsOf, serveVolume, statusOf } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
const TRACK = 64 * KIB;
const SIZE = 32 * MIB;
const TRACK_COUNT = SIZE / TRACK;

async function copy(words: readonly string[]): Promise<Readonly<Record<string, unknown>>> {
  const events = eventsOf(await mustCowbell(['--json', 'copy', ...words]));
  const copied = events.find(({ event }) => event === 'copied');
  if (copied === undefined)
    throw new Error(`Copy ${words.join(' ')} reported nothing: ${JSON.stringify(events)}`);
  return copied;
}

/** Writes on until it is stopped; the rounds are whole when it has. */
class Writer {
  readonly #client: NbdClient;
  #isStopped = false;
  #round = 0;
  readonly #running: Promise<void>;

  private constructor(client: NbdClient) {
    this.#client = client;
    this.#running = this.#run();
  }

  static async start(uri: string): Promise<Writer> {
    return new Writer(await NbdClient.connect(uri));
  }

  get round(): number {
    return this.#round;
  }

  async #run(): Promise<void> {
    const content = Buffer.alloc(TRACK);
    while (!this.#isStopped) {
      this.#round += 1;
      for (let track = 0; track < TRACK_COUNT; track += 1) {
        content.fill(this.#round % 256);
        content.writeUInt32LE(this.#round, 0);
        await this.#client.write(content, track * TRACK);
      }
    }
  }

  async stop(): Promise<void> {
    this.#isStopped = true;
    await this.#running;
    await this.#client.flush();
    await this.#client.disconnect();
  }
}

/** Whether it is one instant of the writer's; @returns the newest round in it. */
function judge(content: Buffer): number {
  let before = content.readUInt32LE(0);
  const newest = before;
  let steps = 0;
  for (let track = 0; track < TRACK_COUNT; track += 1) {
    const part = content.subarray(track * TRACK, (track + 1) * TRACK);
    const round = part.readUInt32LE(0);
    const wanted = Buffer.alloc(TRACK, round % 256);
    wanted.writeUInt32LE(round, 0);
    if (!part.equals(wanted)) throw new Error(`Track ${track} is torn`);
    if (round !== before) steps += 1;
    if (round > before || round < newest - 1 || steps > 1)
      throw new Error(
        `Track ${track} is of round ${round}, behind one of ${before}; the first is of ${newest}`,
      );
    before = round;
  }
  return newest;
}

t.test('under writes, to a file and to an export', async (t) => {
  if (!requireTools(t, ['nbdkit', 'qemu-img', 'nbdcopy'])) return;
  const { at, volume, uri, server } = await serveVolume(t, { size: String(SIZE) });
  const other = at('other.raw');
  const file = openSync(other, 'w');
  ftruncateSync(file, SIZE);
  closeSync(file);
  const socket = join(at('.'), 'k.sock');
  const peer = new Running('nbdkit', ['-f', '-U', socket, 'file', other]);
  t.teardown(() => peer.stop('SIGKILL'));
  await listening(socket, peer);
  const targets = [at('copy.raw'), `nbd+unix:///?socket=${socket}`];

  const writer = await Writer.start(uri);
  let diverted = 0;
  for (const [round, container] of ['memory:64M', 'memory:128K', 'memory:0'].entries()) {
    for (const target of targets) {
      const copied = await copy([volume, target, '--container', container]);
      t.equal(copied['level'], round === 0 ? 'full' : 'incremental');
      diverted += Number(copied['diverted']);
    }
    for (const path of [at('copy.raw'), other]) {
      const newest = judge(readFileSync(path));
      t.ok(newest <= writer.round, `round ${newest} of ${writer.round}, ${container}`);
    }
  }
  t.ok(diverted > 0, `${diverted} tracks were diverted`);
  await writer.stop();

  for (const target of targets) await copy([volume, target]);
  await mustCowbell(['snapshot', 'create', 'before', volume]);
  await must('nbdcopy', [uri, at('before.raw')]);
  const client = await NbdClient.connect(uri);
  await client.write(Buffer.alloc(3 * KIB, 7), TRACK + KIB);
  await client.writeZeroes(5 * TRACK, 2 * TRACK, { mayTrim: true });
  await client.flush();
  await client.disconnect();
  for (const target of targets) {
    const copied = await copy([volume, target]);
    t.match(copied, { level: 'incremental', tracks: 3, bytesWritten: TRACK, bytesZeroed: 2 * TRACK });
  }
  await must('nbdcopy', [uri, at('now.raw')]);
  for (const path of [at('copy.raw'), other])
    t.match(await must('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', path, at('now.raw')]), /identical/);

  t.match(await copy([`${volume}@before`, at('snapshot.raw')]), { level: 'full', snapshot: 'before' });
  await must('cmp', [at('snapshot.raw'), at('before.raw')]);
  t.match(await copy([`${volume}@before`, at('snapshot.raw')]), { tracks: 0, bytesWritten: 0 });
  t.match(await copy([volume, at('snapshot.raw')]), { level: 'incremental', tracks: 3 });
  await must('cmp', [at('snapshot.raw'), at('now.raw')]);
  t.match(await statusOf(volume), { sessions: [] });
  const stopped = await server.stop();
  t.equal(stopped.status, 0, stopped.stderr);
});
