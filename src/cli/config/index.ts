export type { ConfigProblem } from './document.ts';
export { type Config, ConfigError, type ConfigErrorDetails, readConfigFile } from './read-config.ts';
