/**
 * Goal: other programs' clients understand this server.
 * Method: libnbd's `nbdinfo` and `nbdcopy` against a device in memory. Without the tools the tests are
 * skipped, with the reason.
 */

import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import { NbdServer } from './server.ts';
import { TestDevice } from './test-device.ts';
import { formatNbdUri } from './uri.ts';

const run = promisify(execFile);

async function reasonWithout(tool: string): Promise<string | false> {
  try {
    await run(tool, ['--version']);
    return false;
  } catch (error) {
    return `${tool} cannot be run: ${String(error)}`;
  }
}

async function serve(t: Test, devices: Record<string, TestDevice>): Promise<(name: string) => string> {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'));
  const server = new NbdServer();
  for (const [name, device] of Object.entries(devices)) {
    server.addExport({ name, description: `the ${name}`, device, readOnly: false, multiConn: true });
  }
  const transport = await server.listen({ kind: 'unix', path: join(directory, 'a +socket') });
  t.teardown(async () => {
    await server.close();
    rmSync(directory, { recursive: true, force: true });
  });
  return (exportName) => formatNbdUri({ transport, exportName });
}

t.test('nbdinfo sees what is offered', { skip: await reasonWithout('nbdinfo') }, async (t) => {
  const uriOf = await serve(t, {
    disk: new TestDevice(),
    'größe 4k': new TestDevice({ blockSizeBytes: 4096, readOnly: true, sizeBytes: 40_960 }),
  });
  const listed = await run('nbdinfo', ['--json', '--list', uriOf('')]);
  const offered: unknown = JSON.parse(listed.stdout);
  const exports = [
    {
      'export-name': 'disk',
      description: 'the disk',
      'export-size': 1024 * 1024,
      is_read_only: false,
      can_flush: true,
      can_fua: true,
      can_trim: true,
      can_zero: true,
      can_multi_conn: true,
      can_df: true,
      can_cache: true,
      can_fast_zero: true,
      contexts: ['base:allocation'],
      block_size_minimum: 512,
      block_size_preferred: 4096,
      block_size_maximum: 32 * 1024 * 1024,
    },
    {
      'export-name': 'größe 4k',
      'export-size': 40_960,
      is_read_only: true,
      can_trim: false,
      can_zero: false,
      block_size_minimum: 4096,
      block_size_preferred: 4096,
    },
  ];
  t.match(offered, { exports });
  const size = await run('nbdinfo', ['--size', uriOf('größe 4k')]);
  t.equal(size.stdout.trim(), '40960');
  await t.rejects(run('nbdinfo', [uriOf('missing')]), /No such file or directory for export/);
});

t.test('nbdcopy copies in and out', { skip: await reasonWithout('nbdcopy') }, async (t) => {
  const device = new TestDevice({ sizeBytes: 8 * 1024 * 1024 });
  const uriOf = await serve(t, { disk: device });
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const [source, target] = [join(directory, 'source'), join(directory, 'target')];
  const content = Buffer.alloc(device.sizeBytes);
  for (let at = 0; at < content.length / 2; at += 4) content.writeUInt32BE(at, at);
  writeFileSync(source, content);
  await run('nbdcopy', ['--flush', '--connections=4', source, uriOf('disk')]);
  t.ok(device.bytes.equals(content));
  t.ok(device.calls.some((call) => call.startsWith('flush')));
  await run('nbdcopy', [uriOf('disk'), target]);
  t.ok(readFileSync(target).equals(content));
});
