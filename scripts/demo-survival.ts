/**
 * The demo's last chapter: what is not backed up yet survives the loss of the home.
 *
 *   volume with two delta members, backed up once; fio writes and notes what it wrote
 *   the home is deleted while fio writes -> served on, from the set and the deltas
 *   fio reads everything back and compares; nbdcopy copies the volume, cmp compares that with the new home
 *   cowbell volume history           what was written when
 */
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { must, mustCowbell, Running, startCowbell, tail } from '../native-tests/support/process.ts';

const SIZE_MIB = 64;
/** Of the first backup; the writer writes behind it. */
const BACKED_UP_MIB = 16;
const WRITTEN_MIB = 20;
/** It flushes some twenty times, which takes a while each where others keep the disk busy. */
const WRITER_LIMIT_MS = 300_000;
const TAKEN_OVER = /has all of its home again$/;

interface Stage {
  /** A directory of the demo's. */
  readonly work: string;
  readonly store: string;
  readonly say: (text: string) => void;
  readonly show: (output: string) => void;
}

/** Deletes the home of a volume that is being written, and has the content judged by fio and cmp. */
export async function loseHomeUnderWriter({ work, store, say, show }: Stage): Promise<void> {
  const volume = join(work, 'ledger');
  const uri = `nbd+unix:///ledger?socket=${join(volume, 'nbd.sock')}`;
  const members = ['disk2', 'disk3'].map((name) => join(work, name));
  const spare = join(work, 'spare');
  for (const directory of [...members, spare]) mkdirSync(directory);
  const deltas = members.flatMap((member) => ['--delta', join(member, 'deltas')]);
  await mustCowbell([
    'volume',
    'create',
    volume,
    '--size',
    `${SIZE_MIB}M`,
    ...deltas,
    '--delta-size',
    '256M',
  ]);
  const server = startCowbell(['serve', volume, '--survive', store, '--spare', spare]);
  try {
    await server.waitForLine(/^ready /);
    await must('qemu-io', ['-f', 'raw', '-c', `write -P 0x5a 0 ${BACKED_UP_MIB}M`, '-c', 'flush', uri]);
    await mustCowbell(['backup', '--store', store, volume], { timeoutMs: 120_000 });
    say('a second volume with two copies of its deltas: backed up once; fio writes what no backup has');
    const writer = new Running('fio', writerArguments(uri, work));
    await untilChanged(volume);
    rmSync(join(volume, 'home.raw'));
    say('its home is deleted while fio writes');
    await server.waitForLine(TAKEN_OVER);
    show(server.stderr.replaceAll(`${work}/`, ''));
    const { status, stdout, stderr } = await writer.wait(WRITER_LIMIT_MS);
    if (status !== 0) throw new Error(`fio ended with status ${status}: ${tail(stdout)}${tail(stderr)}`);
    await must('qemu-io', ['-r', '-f', 'raw', '-c', `read -P 0x5a 0 ${BACKED_UP_MIB}M`, uri]);
    say(`fio saw no error, and reads back each of its ${WRITTEN_MIB} MiB; the rest is as backed up`);
    const copy = join(work, 'ledger.img');
    await must('nbdcopy', [uri, copy], { timeoutMs: 120_000 });
    await server.stop();
    await must('cmp', [copy, await homeOf(volume)]);
    say('volume history, from the deltas: when was it written?');
    show(await mustCowbell(['volume', 'history', volume]));
  } finally {
    if (server.ended === undefined) await server.stop();
  }
}

/** Writes every block behind the backed-up part once, in random order, slowly; then reads all of it and compares. */
function writerArguments(uri: string, work: string): readonly string[] {
  return [
    '--name=ledger',
    '--ioengine=nbd',
    `--uri=${uri}`,
    `--aux-path=${work}`,
    '--rw=randwrite',
    '--bs=4k',
    '--iodepth=4',
    `--offset=${BACKED_UP_MIB}m`,
    `--size=${WRITTEN_MIB}m`,
    '--rate=8m',
    '--fsync=256',
    '--verify=crc32c',
    '--do_verify=1',
    '--verify_fatal=1',
    '--verify_state_save=0',
  ];
}

/** Waits until the writer has written something; the volume tells only when it is asked. */
async function untilChanged(volume: string): Promise<void> {
  for (;;) {
    const { consumers } = await statusOf(volume);
    if (Array.isArray(consumers) && consumers.some(({ changedTracks }) => changedTracks > 0)) return;
  }
}

async function homeOf(volume: string): Promise<string> {
  return String((await statusOf(volume))['home']);
}

async function statusOf(volume: string): Promise<Record<string, unknown>> {
  const [line = ''] = (await mustCowbell(['--json', 'status', volume])).split('\n');
  return JSON.parse(line);
}
