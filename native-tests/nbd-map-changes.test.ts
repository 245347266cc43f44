/**
 * Goal: tools made for QEMU's dirty bitmaps read what changed on a volume since a consumer's last backup, and
 * since a point; nothing is left out and nothing else is in it.
 *
 * Method: a full backup, writes at known places, then nbdinfo's map under both names; qemu-img's map of the
 * bitmap, where clean is what it calls data.
 */
import t from 'tap';
import { must, mustCowbell } from './support/process.ts';
import { serveVolume } from './support/served.ts';
import { requireTools } from './support/tools.ts';

const TRACK = 65_536;

t.test('nbdinfo and qemu-img map the changes since a backup', async (t) => {
  if (!requireTools(t, ['nbdinfo', 'qemu-io', 'qemu-img'])) return;
  const { at, volume, uri } = await serveVolume(t, { size: '16M' });
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 1 0 8M', uri]);
  await mustCowbell(['store', 'init', at('store')]);
  await mustCowbell(['backup', '--store', at('store'), volume]);
  const status = await mustCowbell(['status', volume, '--json']);
  const consumer = /"consumers":\[\{"name":"([^"]+)","point":"([^"]+)"/.exec(status);
  if (consumer === null) throw new Error(`No consumer in ${status}`);

  const listed = await must('nbdinfo', ['--json', uri]);
  const names = [`qemu:dirty-bitmap:${consumer[1]}`, `cowbell:changed-since:${consumer[2]}`];
  t.match(JSON.parse(listed), { exports: [{ contexts: ['base:allocation', ...names] }] });

  const mapOf = async (name: string): Promise<unknown> =>
    JSON.parse(await must('nbdinfo', ['--json', `--map=${name}`, uri]));
  const extent = (track: number, count: number, type: number): unknown => ({
    offset: track * TRACK,
    length: count * TRACK,
    type,
  });
  for (const name of names) t.match(await mapOf(name), [extent(0, 256, 0)], 'nothing changed yet');
  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 2 192k 1k', '-c', 'discard 1M 128k', uri]);
  const changed = [extent(0, 3, 0), extent(3, 1, 1), extent(4, 12, 0), extent(16, 2, 1), extent(18, 238, 0)];
  for (const name of names) t.match(await mapOf(name), changed, name);
  t.match(await mapOf('cowbell:changed-since:00'), [extent(0, 256, 1)], 'since an unknown point: everything');

  const socket = decodeURIComponent(/socket=(.*)$/.exec(uri)?.[1] ?? '');
  const options = `driver=nbd,export=vol,server.type=unix,server.path=${socket},x-dirty-bitmap=${names[0]}`;
  const mapped: unknown = JSON.parse(
    await must('qemu-img', ['map', '--output=json', '--image-opts', options]),
  );
  t.match(
    Array.isArray(mapped) ? mapped.filter(({ data }: { data: boolean }) => !data) : mapped,
    [
      { start: 3 * TRACK, length: TRACK },
      { start: 16 * TRACK, length: 2 * TRACK },
    ],
    'what is dirty, qemu-img calls no data',
  );
});
