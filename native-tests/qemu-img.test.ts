/**
 * Goal: qemu-img converts onto a volume and back, and finds both equal; from a format of its own too.
 *
 * Method: an ext4 image made here, so that the content has the runs and holes of a filesystem.
 */
import t from 'tap';
import { must, run } from './support/process.ts';
import { serveVolume } from './support/served.ts';
import { findTool, requireTools } from './support/tools.ts';

t.test('convert to a volume, compare, and back', async (t) => {
  if (!requireTools(t, ['qemu-img', 'mkfs.ext4', 'qemu-io'])) return;
  const { at, uri } = await serveVolume(t, { size: '64M' });
  const mkfs = findTool('mkfs.ext4') ?? '';
  await must(mkfs, ['-q', '-d', import.meta.dirname, at('in.raw'), '64M']);
  await must('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', at('in.raw'), at('in.qcow2')]);

  await must('qemu-img', ['convert', '-n', '-f', 'qcow2', '-O', 'raw', at('in.qcow2'), uri]);
  const compared = await must('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', at('in.raw'), uri]);
  t.match(compared, /Images are identical/);
  await must('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', '-m', '16', '-W', uri, at('out.raw')]);
  await must('cmp', [at('in.raw'), at('out.raw')]);

  await must('qemu-io', ['-f', 'raw', '-c', 'write -P 1 33M 512', uri]);
  const different = await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', at('in.raw'), uri]);
  t.equal(different.status, 1, 'a changed sector is seen');
  t.match(different.stdout, /mismatch at offset 34603008/);
});
