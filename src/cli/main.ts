/**
 * Where the process begins: the streams, the signals and the exit status; everything else is below.
 *
 * The first Ctrl-C or SIGTERM asks the command to stop in good order; a second Ctrl-C ends the process at
 * once.
 */

import { readFileSync } from 'node:fs';
import { systemClock } from '../base/index.ts';
import { runCommandLine } from './command-line.ts';
import { EXIT, InterruptedError } from './exit.ts';
import { secretPrompt } from './secret-prompt.ts';
import { takeHandedSockets } from './socket-activation.ts';
import { startSupervisor } from './supervisor.ts';

const INTERRUPTED_STATUS = 130;

function readVersion(): string {
  const manifest: unknown = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  const isManifest = typeof manifest === 'object' && manifest !== null && 'version' in manifest;
  return isManifest ? String(manifest.version) : 'unknown';
}

function watchSignals(): AbortSignal {
  const abort = new AbortController();
  process.on('SIGTERM', () => abort.abort(new InterruptedError()));
  process.on('SIGINT', () => {
    if (abort.signal.aborted) process.exit(INTERRUPTED_STATUS);
    abort.abort(new InterruptedError());
  });
  return abort.signal;
}

function onHangup(listen: () => void): () => void {
  process.on('SIGHUP', listen);
  return () => void process.off('SIGHUP', listen);
}

// Volumes, stores and sockets give access to whole disks: what is made is for its owner alone.
process.umask(0o077);

// Not for the processes that are started, such as hooks.
const { COWBELL_PASSPHRASE: passphrase } = process.env;
delete process.env['COWBELL_PASSPHRASE'];

// A reader that went away (`cowbell ... | head`) must not end a server.
process.stdout.on('error', () => undefined);
process.stderr.on('error', () => undefined);

// When nothing is left to wait for Node ends, whatever was still promised; nobody may take that for success.
process.once('exit', () => {
  if (process.exitCode !== undefined) return;
  process.stderr.write('cowbell: The command ended before it was done; this is a defect of cowbell\n');
  process.exitCode = EXIT.operatingError;
});

process.exitCode = await runCommandLine(process.argv.slice(2), {
  stdout: process.stdout,
  stderr: process.stderr,
  directory: process.cwd(),
  signal: watchSignals(),
  clock: systemClock,
  passphrase,
  askSecret: secretPrompt(process.stdin, process.stderr),
  startSupervisor,
  onHangup,
  takeHandedSockets: () => takeHandedSockets(process.env, process.pid),
  version: readVersion(),
});
