/** Where a server listens besides the sockets of its volumes: the options of every command that serves. */

import type { Argv } from 'yargs';
import type { FurtherListener, ServingTls } from '../daemon/index.ts';
import { absolutePath, readListen, readRestriction, several } from './arguments.ts';
import type { CommandContext } from './command.ts';

export interface ListenOptions {
  readonly socket: readonly string[] | undefined;
  readonly listen: readonly string[] | undefined;
  readonly tls: string | undefined;
  readonly tlsMode: ServingTls['policy'] | undefined;
  readonly tlsVerifyPeer: 'yes' | 'no' | undefined;
}

export function addListenOptions<T>(command: Argv<T>) {
  return command
    .option('socket', {
      type: 'string',
      array: true,
      requiresArg: true,
      describe: 'Listen on the Unix socket <path> too, for all exports, or <path>=<name>,... for some',
    })
    .option('listen', {
      type: 'string',
      array: true,
      requiresArg: true,
      describe:
        'Listen on <host:port> too, for all exports, or <host:port>=<name>,... for some; without encryption unless --tls is given; port 0 picks one',
    })
    .option('tls', {
      type: 'string',
      requiresArg: true,
      describe:
        'Encrypt the sockets of --socket and --listen with the certificates and keys in this directory',
    })
    .option('tls-mode', {
      choices: ['required', 'optional'] as const,
      requiresArg: true,
      describe: 'Whether clients without TLS are refused there; default required',
    })
    .option('tls-verify-peer', {
      choices: ['yes', 'no'] as const,
      requiresArg: true,
      describe: 'Whether clients must show a certificate signed by ca-cert.pem; default yes',
    })
    .implies({ 'tls-mode': 'tls', 'tls-verify-peer': 'tls' });
}

/** All listeners that were asked for, and those that systemd has handed over. */
export function listenersOf(context: CommandContext, options: ListenOptions): readonly FurtherListener[] {
  return [
    ...several(options.socket).map((text) => socketListener(text, context.directory)),
    ...several(options.listen).map((text) => tcpListener(text)),
    ...context.takeHandedSockets(),
  ];
}

/** @param directory the working directory. */
export function tlsOf(options: ListenOptions, directory: string): ServingTls | undefined {
  if (options.tls === undefined) return undefined;
  return {
    directory: absolutePath('--tls', options.tls, directory),
    policy: options.tlsMode ?? 'required',
    verifyPeer: options.tlsVerifyPeer !== 'no',
  };
}

/** @throws {UsageError} */
export function socketListener(text: string, directory: string, option = '--socket'): FurtherListener {
  const { place, exports } = readRestriction(option, text);
  return { place: { kind: 'unix', path: absolutePath(option, place, directory) }, exports };
}

/** @throws {UsageError} */
export function tcpListener(text: string, option = '--listen'): FurtherListener {
  const { place, exports } = readRestriction(option, text);
  return { place: { kind: 'tcp', ...readListen(place, option) }, exports };
}

/** Finishes when the signal fires: a server runs until then. */
export function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
