/**
 * Goal: a client learns what kind of error it was and where, and nothing of the machine; the machine's log
 * learns all of it, once. Method: errors as devices raise them, through the answer and the log; and once over
 * a connection, to see that no other way leads a message to the client.
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { AssertionError } from '../base/index.ts';
import { NbdClient } from './client.ts';
import { COMMAND } from './codec.ts';
import { DeviceFailures } from './device-failures.ts';
import { NbdServer } from './server.ts';
import { exportOf } from './test-client.ts';
import { TestDevice } from './test-device.ts';
import { block } from './test-transmission.ts';

const SECRET = '/srv/customers/home.raw';

function failing(code: string | undefined): Error {
  const error = new Error(`${code}: it went wrong, write '${SECRET}'`);
  return code === undefined ? error : Object.assign(error, { code });
}

t.test('each kind of error has its sentence', (t) => {
  const failures = new DeviceFailures(() => undefined);
  const request = { command: COMMAND.write, offsetBytes: 8192, lengthBytes: 4096 };
  for (const [code, error, reason] of [
    ['EROFS', 1, 'the server may not do that'],
    ['EIO', 5, 'the device behind the export failed'],
    ['poisoned', 5, 'nothing may be written since a failed flush or write, until somebody checks the volume'],
    [undefined, 5, 'the device behind the export failed'],
    ['EWHAT', 5, 'the device behind the export failed'],
    ['ENOMEM', 12, 'the server has too little memory'],
    ['EINVAL', 22, 'the device behind the export refused the request'],
    ['no-space', 28, 'there is no space left behind the export'],
    ['ESHUTDOWN', 108, 'the device behind the export is being shut down'],
  ] as const) {
    const message = `Cannot write 4096 bytes at offset 8192: ${reason}`;
    t.strictSame(failures.failureOf(request, failing(code)), { error, message }, code ?? 'no code');
  }
  const flush = { ...request, command: COMMAND.flush };
  t.equal(
    failures.failureOf(flush, failing('EIO')).message,
    'Cannot flush: the device behind the export failed',
  );
  t.equal(failures.failureOf(request, 'text').error, 5);
  t.end();
});

t.test('one error of each code is logged, in full', (t) => {
  const logged: string[] = [];
  const failures = new DeviceFailures((level, message) => logged.push(`${level} ${message}`));
  const request = { command: COMMAND.write, offsetBytes: 0, lengthBytes: 512 };
  for (const code of ['ENOSPC', 'EWHAT', 'ENOSPC', undefined, 'EWHAT', undefined]) {
    failures.failureOf(request, failing(code));
  }
  t.strictSame(logged, [
    `warning Command 1 on 0+512 failed: ENOSPC: it went wrong, write '${SECRET}'`,
    `error Command 1 on 0+512 failed: EWHAT: it went wrong, write '${SECRET}'`,
    `error Command 1 on 0+512 failed: undefined: it went wrong, write '${SECRET}'`,
  ]);
  for (let index = 0; index < 1000; index += 1) failures.failureOf(request, failing(`made-up-${index}`));
  t.equal(logged.length, 64);
  t.end();
});

t.test('no message of a device reaches a client, in any mode of replies', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'nbd-'));
  const logged: string[] = [];
  const device = new TestDevice({
    extents: true,
    before: (call, offsetBytes) => {
      if (offsetBytes === 4096) throw new AssertionError(SECRET);
      throw failing(call === 'write' ? 'ENOSPC' : call === 'flush' ? 'EIO' : undefined);
    },
  });
  const server = new NbdServer({
    exports: [exportOf(device)],
    log: ({ message, error }) => logged.push(message + String(error)),
    onProgrammerError: () => undefined,
  });
  t.teardown(async () => {
    await server.close();
    rmSync(directory, { recursive: true, force: true });
  });
  const transport = await server.listen({ kind: 'unix', path: join(directory, 's') });
  for (const replies of ['simple', 'structured', 'extended'] as const) {
    const contexts = replies === 'simple' ? [] : ['base:allocation'];
    const client = await NbdClient.connect(
      { transport, exportName: 'disk' },
      {
        structuredReplies: replies !== 'simple',
        extendedHeaders: replies === 'extended',
        contexts,
      },
    );
    const calls = [
      client.read(block(0), 0),
      client.write(block(1), 0),
      client.write(block(1), 4096),
      client.writeZeroes(0, 512),
      client.trim(0, 512),
      client.flush(),
      ...(replies === 'simple' ? [] : [client.blockStatus(0, 512)]),
    ];
    for (const outcome of await Promise.allSettled(calls)) {
      t.equal(outcome.status, 'rejected');
      if (outcome.status === 'rejected') t.notMatch(String(outcome.reason), SECRET, String(outcome.reason));
    }
    await client.disconnect();
  }
  t.match(logged.join('\n'), SECRET);
});
